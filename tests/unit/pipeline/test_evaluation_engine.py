"""Evaluation rows that an engine answers: with the adapter for the student, else without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.engines import started, vllm
from instil.engines.engine import Wanted
from instil.engines.started import chosen
from instil.errors import ConfigError, EngineError
from instil.models.generate import Generated, completed
from instil.pipeline.record import ADAPTER
from instil.recipe.sections import Engine
from instil.results.schema import RESULTS, Results

ASKED: list[tuple[bool, int]] = []
FOLDERS: list[Path] = []
RUNNING: list[bool] = []


@dataclass(frozen=True)
class Here:
    """An engine that answers with the model of this process."""

    wanted: Wanted
    adapted: bool = True
    name: str = "here"

    @property
    def without_adapter(self) -> Here:
        return replace(self, adapted=False)

    def completed(
        self, prompts: Sequence[list[int]], ending: Any, decoding: Any, **more: Any
    ) -> Iterator[tuple[list[int], list[Generated], int]]:
        assert RUNNING == [True]
        ASKED.append((self.adapted, len(prompts)))
        network: Any = self.wanted.model.network
        asked = partial(completed, self.wanted.model, prompts, ending, decoding)
        if self.adapted:
            yield from asked()
        else:
            with network.disable_adapter():
                yield from asked()

    def scored(self, *args: Any, **more: Any) -> Any:
        raise AssertionError


@contextmanager
def serving(wanted: Wanted) -> Iterator[Here]:
    assert wanted.adapter is not None
    assert (wanted.adapter / "adapter_model.safetensors").is_file()
    FOLDERS.append(wanted.adapter)
    RUNNING.append(True)
    try:
        yield Here(wanted)
    finally:
        RUNNING.pop()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(started.ENGINES, "vllm", serving)
    monkeypatch.setattr(vllm, "check_installed", lambda python: None)
    for kept in (ASKED, FOLDERS, RUNNING):
        kept.clear()


def distilled(model: Path, output: Path, **more: Any) -> Results:
    run = instil.distill(
        str(model),
        context=instil.FewShot([{"input": "zero", "output": "0"}]),
        inputs=[{"input": word} for word in ("one", "two", "three", "four")],
        eval=[{"input": "five", "output": "5"}, {"input": "six", "output": "6"}],
        output=output,
        prompt={"format": "plain"},
        teacher={"max_new_tokens": 6},
        training={"max_steps": 3, "learning_rate": 0.01},
        keep={"source": "none"},
        dtype="float32",
        quiet=True,
        **more,
    )
    return Results.read(run.path / RESULTS)


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize("save", [True, False])
def test_an_engine_answers_as_this_process_does(
    model_folders: dict[str, Path], tmp_path: Path, save: bool
) -> None:
    settings = {"drift_tokens": 20, "general_prompts": 7}
    here = distilled(model_folders["llama"], tmp_path / "here", evaluation=settings)
    assert not ASKED
    there = distilled(
        model_folders["llama"],
        tmp_path / "there",
        evaluation=settings | {"engine": {"name": "vllm"}},
        student={"save": save},
    )
    assert ASKED == [(True, 2), (False, 2), (False, 2)]
    assert (here.answered_by, there.answered_by) == (None, "vllm")
    assert (FOLDERS[0].name, RUNNING) == (ADAPTER, [])
    assert (tmp_path / "there" / ADAPTER).is_dir() == save
    for mine, other in zip(there.methods, here.methods, strict=True):
        assert mine.scores[0].accuracy == other.scores[0].accuracy
        assert mine.scores[0].fidelity == other.scores[0].fidelity
        assert mine.scores[0].written == other.scores[0].written


@pytest.mark.usefixtures("engines")
def test_an_engine_ends_with_an_error_of_the_evaluation(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Here, *args: Any, **more: Any) -> Any:
        raise EngineError("the server is gone")

    monkeypatch.setattr(Here, "completed", fails)
    with pytest.raises(EngineError, match="the server is gone"):
        distilled(model_folders["llama"], tmp_path / "run", evaluation={"engine": {"name": "vllm"}})
    assert RUNNING == []


def test_what_cannot_start_is_refused_before_any_work(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = {"engine": {"name": "vllm", "python": str(tmp_path / "none")}}
    with pytest.raises(EngineError, match="there is no Python"):
        distilled(model_folders["llama"], tmp_path / "run", evaluation=settings)
    assert not [*tmp_path.iterdir()]


@pytest.mark.usefixtures("engines")
def test_if_auto_does_not_start_this_process_answers(
    model_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextmanager
    def broken(wanted: Wanted) -> Iterator[Here]:
        raise EngineError("vLLM ended while it started", got="no memory is left")
        yield

    monkeypatch.setitem(started.ENGINES, "vllm", broken)
    monkeypatch.setattr("instil.pipeline.text.chosen", lambda wanted: wanted and Engine())
    settings = {"drift_tokens": 20, "general_prompts": 7}
    model = model_folders["llama"]
    here = distilled(model, tmp_path / "here", evaluation=settings)
    there = distilled(model, tmp_path / "there", evaluation=settings | {"engine": "auto"})
    said = " ".join(capsys.readouterr().err.split())
    assert "vLLM ended while it started, so this process answers; no memory is left" in said
    assert [one.scores for one in there.methods] == [one.scores for one in here.methods]
    assert there.answered_by is None
    with pytest.raises(EngineError, match="ended while it started"):
        distilled(model, tmp_path / "x", evaluation=settings | {"engine": {"name": "vllm"}})


def test_auto_takes_an_engine_only_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert chosen(None) is None
    assert chosen(Engine(options=("--x",))) == Engine(options=("--x",))
    monkeypatch.setattr(vllm, "found", lambda: True)
    monkeypatch.setattr(started, "default_device", lambda: torch.device("cpu"))
    assert chosen("auto") is None
    monkeypatch.setattr(started, "default_device", lambda: torch.device("cuda"))
    assert chosen("auto") == Engine()
    monkeypatch.setattr(vllm, "found", lambda: False)
    assert chosen("auto") is None


def test_a_server_that_runs_has_no_adapter_of_this_run(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.engine.*leave url out"):
        distilled(
            model_folders["llama"],
            tmp_path / "run",
            evaluation={"engine": {"name": "vllm", "url": "http://127.0.0.1:8000"}},
        )
