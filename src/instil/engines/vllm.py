"""vLLM (Kwon et al. 2023, arXiv:2309.06180): a server that keeps the keys and values of prompts.

Token ids go in and come back, so no text is tokenised twice. A completion is scored by having the
server write it (`inside_vllm/instil_forced.py`), after a prompt whose beginning it has read before:
scoring a whole prompt would read all of it anew, and would send the predictions of each of its tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from instil.engines.chat import client, unanswered
from instil.engines.engine import Wanted
from instil.engines.process import free_port, running
from instil.engines.trial import compare
from instil.errors import ConfigError, EngineError
from instil.models.generate import Decoding, Ending, Generated, trimmed
from instil.models.repeats import cut
from instil.models.source import Source, resolve
from instil.system import processes
from instil.system.disk import from_home
from instil.targets.prediction import Targets
from instil.targets.selection import Selection
from instil.targets.told import told_targets

AT_ONCE = 128
"""Requests that are under way at the same time. The server decides how many it computes together."""
PLUGIN = Path(__file__).with_name("inside_vllm")
FORCED = "instil_completion"
"""As in the plugin."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM knows."""
BASE, ADAPTER = "base", "adapter"
NO_KEY = ""
MEMORY = "--gpu-memory-utilization"
HOURS = 6 * 3600.0
PYTHON = "INSTIL_VLLM_PYTHON"
"""Environment variable with the Python that has vLLM."""
USUAL = Path(".venv-vllm/bin/python")


@dataclass(frozen=True)
class VLLM:
    """A client of a vLLM server.

    Attributes:
        name: Its name, for a reader.
        url: Address of the server.
        model: Name of the model there.
        client: The client of its interface.
    """

    name: str
    url: str
    model: str
    client: Any

    @property
    def without_adapter(self) -> VLLM:
        """See `Engine.without_adapter`."""
        return replace(self, model=BASE)

    def completed(
        self,
        prompts: Sequence[list[int]],
        ending: Ending,
        decoding: Decoding,
        *,
        numbers: Sequence[int] | None = None,
        known: Collection[int] = (),
    ) -> Iterator[tuple[list[int], list[Generated], int]]:
        """See `Engine.completed`."""
        rows = range(len(prompts)) if numbers is None else numbers
        left = [place for place in range(len(prompts)) if place not in known]

        def write(place: int) -> Generated:
            (choice,) = self._ask(
                prompts[place],
                max_tokens=decoding.max_new_tokens,
                temperature=decoding.temperature,
                seed=_seed(decoding.seed, rows[place]) if decoding.temperature else None,
                stop=list(ending.stop) or None,
                stop_token_ids=list(ending.ids),
                ignore_eos=True,  # only what is named ends an answer
                include_stop_str_in_output=True,
                skip_special_tokens=False,
            )["choices"]
            ids = list(choice["token_ids"])
            return trimmed(ids[: cut(ids)] if decoding.stop_repeats else ids, ending)

        for start in range(0, len(left), AT_ONCE):
            places = left[start : start + AT_ONCE]
            made = self._all(write, places)
            yield places, made, sum(len(one.ids) for one in made)

    def scored(
        self, pairs: Sequence[tuple[list[int], list[int]]], kept: Selection, *, vocabulary: int
    ) -> Iterator[tuple[int, Targets]]:
        """See `Engine.scored`."""

        def score(number: int) -> Targets:
            prompt, completion = pairs[number]
            (choice,) = self._ask(
                prompt,
                max_tokens=len(completion),
                temperature=0.0,
                logprobs=kept.top_k + 1,  # the one that is written may be the last of these
                ignore_eos=True,
                detokenize=False,
                extra_args={FORCED: completion},
            )["choices"]
            if choice["token_ids"] != completion:
                raise EngineError(
                    f"{self.name} does not write the completion that it is given",
                    got=f"{choice['token_ids'][:8]} in place of {completion[:8]}",
                    mend="start the server with: instil engine start",
                )
            told = [step["top_logprobs"] for step in choice["logprobs"]["content"]]
            steps = [[(one["token_id"], one["logprob"]) for one in step] for step in told]
            return told_targets(steps, kept, vocabulary)

        for start in range(0, len(pairs), AT_ONCE):
            places = range(start, min(start + AT_ONCE, len(pairs)))
            yield from zip(places, self._all(score, places), strict=True)

    def _all(self, ask: Callable[[int], Any], places: Sequence[int]) -> list[Any]:
        from openai import OpenAIError

        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return list(pool.map(ask, places))
        except OpenAIError as error:
            raise unanswered(f"{self.name} at {self.url}", error) from error

    def _ask(self, prompt: list[int], **sampling: Any) -> dict[str, Any]:
        given = {name: value for name, value in sampling.items() if value is not None}
        body = {"model": self.model, "token_ids": prompt, "sampling_params": given}
        found: Any = self.client.post("/inference/v1/generate", cast_to=object, body=body)
        if not isinstance(found, dict) or not found.get("choices"):
            raise EngineError(
                f"{self.name} at {self.url} gives no answer",
                got=repr(found)[:200],
                mend="check the address, and start the server with: instil engine start",
            )
        return found


@contextmanager
def serving(wanted: Wanted) -> Iterator[VLLM]:
    """A server of a model, which is started unless the settings name one that runs.

    Raises:
        EngineError: it does not start, lacks options that are needed, or computes something else.
        ServerError: it does not answer.
    """
    settings = wanted.settings
    called = BASE if wanted.adapter is None else ADAPTER

    @contextmanager
    def found(url: str) -> Iterator[VLLM]:
        # A server of one's own needs no key, and must not see that of another. A long answer after
        # many others is no failure, and is not asked for again.
        with client(url, NO_KEY, seconds=HOURS, retries=0) as asks:
            made = VLLM("vLLM", url, called, asks)
            compare(made, wanted)
            yield made

    if settings.url is not None:
        with found(settings.url.rstrip("/")) as made:
            yield made
        return
    if processes.count() > 1:
        raise EngineError(
            "several processes cannot each start vLLM",
            mend="start it once with instil engine start, and name it with teacher.engine.url; "
            "evaluation.engine needs a single process",
        )
    port = free_port()
    client(
        f"http://127.0.0.1:{port}", NO_KEY
    ).close()  # refused before the server has loaded a model
    options = [*_share(settings.options), *settings.options]
    command, environment = started_by(
        resolve(wanted.model.name),
        port=port,
        dtype=wanted.model.dtype,
        outcomes=wanted.outcomes,
        adapter=wanted.adapter,
        python=settings.python,
        options=options,
    )
    url = f"http://127.0.0.1:{port}"
    with (
        running(
            command,
            name="vLLM",
            health=f"{url}/health",
            environment=environment,
            display=wanted.display,
        ),
        found(url) as made,
    ):
        yield made


def _share(options: Sequence[str]) -> list[str]:
    """The part of an accelerator's memory that this process has left for the server."""
    if MEMORY in options or not torch.cuda.is_available():
        return []
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return [MEMORY, f"{0.9 * free / total:.2f}"]


def started_by(
    model: Source,
    *,
    port: int,
    dtype: str,
    outcomes: int,
    adapter: Path | None,
    python: Path | None,
    options: Sequence[str],
) -> tuple[list[str], dict[str, str]]:
    """The command that starts a server, and the environment variables that it needs.

    Args:
        model: The model.
        port: Port of this machine.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        outcomes: Most outcomes of a token that it must tell.
        adapter: Folder of an adapter in PEFT's format.
        python: Python with vLLM; None: see `python_of`.
        options: Further options of the server.

    Raises:
        EngineError: there is no Python with vLLM.
    """
    command = [str(python_of(python)), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", model.path, "--served-model-name", BASE, "--dtype", dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-logprobs", str(outcomes + 1)]
    command += ["--generation-config", "vllm", "--enable-scale-out"]
    command += ["--logits-processors", "instil_forced:Forced"]
    if model.pinned:
        command += ["--revision", model.pinned, "--tokenizer-revision", model.pinned]
    if adapter is not None:
        rank = _rank(adapter)
        command += ["--enable-lora", "--max-lora-rank", str(rank)]
        command += ["--lora-modules", f"{ADAPTER}={adapter.resolve()}"]
    paths = [str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    if not torch.cuda.is_available():
        command.append("--enforce-eager")  # nothing is compiled for a few minutes of work
        environment |= {
            "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2"),
        }
    return [*command, *options], environment


def check_installed(python: Path | None) -> None:
    """Refuses to go on without a Python that has vLLM, or without the client.

    Args:
        python: See `python_of`.

    Raises:
        ConfigError: the client is not installed.
        EngineError: there is no Python with vLLM.
    """
    client("http://127.0.0.1:9", NO_KEY).close()
    python_of(python)


def found() -> bool:
    """Whether there is a Python that has vLLM, and the client."""
    try:
        check_installed(None)
    except (ConfigError, EngineError):
        return False
    return True


def python_of(named: Path | None) -> Path:
    """The Python that has vLLM: the one that is named, or where `make engines` puts it, or this one.

    Raises:
        EngineError: it is not there, or this one has no vLLM.
    """
    from importlib.util import find_spec

    given = named or (Path(os.environ[PYTHON]) if os.environ.get(PYTHON) else None)
    given = given and from_home(given)
    if given is not None:
        if not given.exists():
            raise EngineError(f"there is no Python {given}", mend="name one that has vLLM")
        return given
    if USUAL.exists():
        return USUAL
    if find_spec("vllm") is None:
        raise EngineError(
            "vLLM is not installed",
            allowed=f"teacher.engine.python, the environment variable {PYTHON}, or {USUAL}",
            mend="pip install vllm in an environment of its own, and name its Python",
        )
    return Path(sys.executable)


def _seed(seed: int, row: int) -> int:
    """A seed of a row's own; a small number is a poor one."""
    return int.from_bytes(hashlib.sha256(f"{seed} {row}".encode()).digest()[:4])


def _rank(adapter: Path) -> int:
    """The rank that the server must allow: vLLM knows 8, 16, 32 and so on."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    served = [known for known in RANKS if known >= rank]
    if not served:
        raise EngineError(
            f"{adapter}: vLLM serves no adapter of this rank",
            got=str(rank),
            allowed=f"at most {RANKS[-1]}",
        )
    return served[0]
