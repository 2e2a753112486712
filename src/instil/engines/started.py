"""Starts the engine of a run when it is first needed. A new engine is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from instil.engines import vllm
from instil.engines.engine import Engine, Wanted

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

    def close(self) -> None:
        """Ends the engine. It is started again if it is needed again."""
        self._engine = None
        self._held.close()


def identity(started: Started | None) -> list[str]:
    """What tells the work of an engine from that of this process; empty for this process."""
    if started is None:
        return []
    settings = started.wanted.settings
    return [settings.name, *settings.options]
