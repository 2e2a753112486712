"""A run whose teacher is an engine: the same work, wherever it is done."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import QUIET, models_of, nothing, pairs_of

import instil
from instil.engines import started
from instil.engines.engine import Wanted
from instil.engines.started import Started
from instil.engines.trial import compare
from instil.errors import EngineError
from instil.models.generate import Decoding, Ending, Generated, completed
from instil.models.load import LanguageModel
from instil.models.roles import Models
from instil.prompts.pair import AlignedPair
from instil.recipe.recipe import Recipe
from instil.recipe.sections import Engine
from instil.system.costs import Recorder
from instil.targets.prediction import Targets
from instil.targets.selection import Selection
from instil.teacher.lessons import Teaching
from instil.teacher.scorer import Scorer


@dataclass(frozen=True)
class Here:
    """An engine of this process."""

    model: LanguageModel
    name: str = "here"

    def completed(
        self,
        prompts: Sequence[list[int]],
        ending: Ending,
        decoding: Decoding,
        *,
        numbers: Sequence[int] | None = None,
        known: Collection[int] = (),
    ) -> Iterator[tuple[list[int], list[Generated], int]]:
        with self._off():
            yield from completed(
                self.model, prompts, ending, decoding, numbers=numbers, known=known
            )

    def scored(
        self, pairs: Sequence[tuple[list[int], list[int]]], kept: Selection, *, vocabulary: int
    ) -> Iterator[tuple[int, Targets]]:
        scorer = Scorer.of(
            self.model,
            [AlignedPair(n, *(prompt, prompt), ids) for n, (prompt, ids) in enumerate(pairs)],
            vocabulary=vocabulary,
            kept=kept,
            temperature=1.0,
            batch_size=4,
            advance=nothing,
        )
        with self._off():
            yield from scorer.score(range(len(pairs)))

    def _off(self) -> Any:
        network: Any = self.model.network
        return network.disable_adapter() if hasattr(network, "disable_adapter") else nullcontext()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done with engines."""
    told: list[str] = []

    @contextmanager
    def serving(wanted: Wanted) -> Iterator[Here]:
        told.append("started")
        yield Here(wanted.model)
        told.append("ended")

    monkeypatch.setitem(started.ENGINES, "vllm", serving)
    return told


@pytest.fixture
def models(llama: LanguageModel) -> Models:
    return models_of(llama)


def wanted_of(models: Models, prompts: Sequence[list[int]], adapter: Path | None = None) -> Wanted:
    return Wanted(Engine(), models.student, 64, adapter, prompts, QUIET)


def test_an_engine_that_computes_the_same_is_taken(models: Models) -> None:
    prompts = [pair.teacher_prompt for pair in pairs_of(models.student)]
    compare(Here(models.student), wanted_of(models, prompts))


def test_an_engine_that_computes_something_else_is_refused(models: Models) -> None:
    prompts = [pair.teacher_prompt for pair in pairs_of(models.student)]
    network: Any = models.student.network
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    # The engine has the adapter off, and the run asks for it.
    with pytest.raises(EngineError, match=r"does not compute what .* with the adapter of this run"):
        compare(Here(models.student), wanted_of(models, prompts, Path("adapter")))
    compare(Here(models.student), wanted_of(models, prompts))


def test_targets_of_an_engine_are_those_of_this_process(
    models: Models, tmp_path: Path, ended: list[str]
) -> None:
    settings: dict[str, Any] = {"model": models.student.name, "teacher": {"mass_per_draw": 0}}
    plain = Teaching(Recipe.parse(settings), models, Recorder(), QUIET)
    settings["teacher"] = {"engine": {"name": "vllm"}}
    recipe, pairs = Recipe.parse(settings), pairs_of(models.student)
    engine = Started(wanted_of(models, [pair.teacher_prompt for pair in pairs]))
    served = Teaching(recipe, models, Recorder(), QUIET, engine)
    assert served.kept == plain.kept
    assert served.fingerprint(pairs) != plain.fingerprint(pairs)
    one = plain.lessons(pairs, recipe.objective, tmp_path / "one")
    assert ended == []
    two = served.lessons(pairs, recipe.objective, tmp_path / "two")
    assert ended == ["started"]
    engine.close()
    engine.close()
    assert ended == ["started", "ended"]
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.targets.ids_NK, b.targets.ids_NK)
        torch.testing.assert_close(a.targets.logprobs_NK, b.targets.logprobs_NK)
    again = replace(served, engine=Started(wanted_of(models, [])))
    again.lessons(pairs, recipe.objective, tmp_path / "two")
    assert ended == ["started", "ended"]  # what is stored needs no engine


def test_a_run_starts_an_engine_once_and_ends_it_before_the_training(
    tmp_path: Path, model_folders: dict[str, Path], ended: list[str]
) -> None:

    def run(engine: dict[str, Any] | None, name: str) -> instil.Run:
        return instil.distill(
            str(model_folders["llama"]),
            inputs=[{"input": word} for word in ("one", "two", "three", "four")],
            eval=[{"input": "five", "output": "5"}, {"input": "six", "output": "6"}],
            context=instil.FewShot([{"input": "zero", "output": "0"}]),
            output=tmp_path / name,
            prompt={"format": "plain"},
            teacher={"engine": engine, "mass_per_draw": 0, "max_new_tokens": 8},
            training={"max_steps": 2},
            evaluation={"drift_tokens": 20, "general_prompts": 7},
            keep={"rows": 4, "tokens": 4},
            dtype="float32",
            quiet=True,
        )

    here, there = run(None, "here"), run({"name": "vllm"}, "there")
    assert ended == ["started", "ended"]
    first, second = (one.results.methods[0].scores[0] for one in (here, there))
    assert first.fidelity is not None
    assert second.fidelity is not None
    assert first.fidelity.kl_to_teacher == pytest.approx(second.fidelity.kl_to_teacher, rel=1e-4)
    texts = [[line.text for line in one.predictions] for one in (here, there)]
    assert texts[0] == texts[1]
