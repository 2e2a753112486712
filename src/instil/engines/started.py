"""Starts the engine of a run when it is first needed. A new engine is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Literal

from instil.engines import vllm
from instil.engines.engine import Engine, Wanted
from instil.errors import EngineError, ServerError
from instil.models.number_format import default_device
from instil.recipe.sections import Engine as Settings
from instil.system import processes

ENGINES: dict[str, Callable[[Wanted], AbstractContextManager[Engine]]] = {"vllm": vllm.serving}
"""Name -> starts the engine, or finds it, and ends it."""


class Started:
    """An engine that is started when it is first needed.

    Args:
        wanted: What it is started with.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._held = ExitStack()
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine, which is started now if it does not run.

        Raises:
            EngineError: it does not start, or it does not compute what the model computes.
            ServerError: it does not answer.
        """
        if self._engine is None:
            self._engine = self._held.enter_context(ENGINES[self.wanted.settings.name](self.wanted))
        return self._engine

    def if_it_starts(self) -> Started | None:
        """This engine, which is started now; None, with a warning, if that fails."""
        try:
            self.engine  # noqa: B018 - it starts
        except (EngineError, ServerError) as error:
            self.close()
            self.wanted.display.warn(f"{error.what}, so this process answers; {error.got}")
            return None
        return self

    def close(self) -> None:
        """Ends the engine. It is started again if it is needed again."""
        self._engine = None
        self._held.close()


def chosen(wanted: Settings | Literal["auto"] | None) -> Settings | None:
    """The engine that a setting means; None for this process.

    On a processor, vLLM is not faster than this process (benchmarks/README.md, "vLLM beside this
    process"), so `auto` takes it only on an accelerator.
    """
    if wanted != "auto":
        return wanted
    alone = processes.count() == 1 and default_device().type == "cuda"
    return Settings(name="vllm") if alone and vllm.found() else None


def check_start(settings: Settings) -> None:
    """Refuses an engine that this process cannot start, before any work.

    Raises:
        ConfigError: the client of its interface is not installed.
        EngineError: it is not installed, or there are several processes.
    """
    if processes.count() > 1:
        raise EngineError(
            "several processes cannot each start an engine",
            got=f"{processes.count()} processes",
            mend="leave evaluation.engine out, and use `instil check RUN --engine vllm` at the end",
        )
    vllm.check_installed(settings.python)


def identity(started: Started | None) -> list[str]:
    """What tells the work of an engine from that of this process; empty for this process."""
    if started is None:
        return []
    settings = started.wanted.settings
    return [settings.name, *settings.options]
