"""What the teacher's targets depend on, and that they are computed once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import byte_tokenizer, tiny_llama
from tests.small import QUIET, form_of, models_of, pairs_of

from instil.models import reader
from instil.models.load import LanguageModel, load
from instil.models.roles import Models
from instil.prompts.context import Context, FewShot
from instil.prompts.pair import AlignedPair
from instil.recipe.grid import override
from instil.recipe.recipe import Recipe
from instil.system.costs import Recorder
from instil.targets.codec import STEP
from instil.targets.selection import Selection
from instil.teacher.lessons import Teaching
from instil.teacher.scorer import Scorer

OTHER = Context.of(FewShot([{"input": "one", "output": "1"}, {"input": "eight", "output": "8"}]))


@pytest.fixture
def models(llama: LanguageModel) -> Models:
    return models_of(llama)


@pytest.fixture
def pairs(llama: LanguageModel) -> list[AlignedPair]:
    return pairs_of(llama)


def at_work(models: Models, *changes: str) -> Teaching:
    settings = override({"model": models.student.name}, changes)
    return Teaching(Recipe.parse(settings), models, Recorder(), QUIET)


MATTERS: dict[str, Callable[[list[AlignedPair]], list[AlignedPair]] | str] = {
    "K": "teacher.top_k=9",
    "mass": "teacher.mass=0.9",
    "the least probability": "teacher.min_probability=0.01",
    "draws": "teacher.mass_per_draw=0.01",
    "a loss that takes no draws": "objective={name: reverse_kl}",
    "temperature": "objective.temperature=2",
    "logits that a loss needs": "objective={name: logit_mse, top_k: 9}",
    "the context": lambda pairs: [
        replace(pair, teacher_prompt=[*pair.teacher_prompt[:-1], 7]) for pair in pairs
    ],
    "a completion": lambda pairs: [*pairs[:-1], replace(pairs[-1], completion=[7])],
    "where a completion begins": lambda pairs: [
        replace(
            pair,
            teacher_prompt=pair.teacher_prompt + pair.completion[:1],
            completion=pair.completion[1:],
        )
        for pair in pairs
    ],
    "the rows": lambda pairs: pairs[:-1],
    "their order": lambda pairs: pairs[::-1],
}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ([], Selection(top_k=256, min_probability=5e-4, mass_per_draw=1e-3)),
        (["teacher.min_probability=0", "teacher.top_k=9"], Selection(top_k=9, mass_per_draw=1e-3)),
        (["teacher.min_probability=0", "teacher.mass_per_draw=0"], Selection(top_k=256)),
        (["objective.temperature=2"], Selection(top_k=256, min_probability=5e-4)),
        (["objective={name: reverse_kl}"], Selection(top_k=256, min_probability=5e-4)),
        (
            ["objective=[{name: forward_kl}, {name: cross_entropy}]"],
            Selection(top_k=256, min_probability=5e-4, mass_per_draw=1e-3),
        ),
        (["objective={name: logit_mse, top_k: 9}"], Selection(top_k=9)),
        (
            ["objective=[{name: forward_kl}, {name: logit_mse, top_k: 9}]"],
            Selection(top_k=256, min_probability=5e-4, at_least=9),
        ),
        (
            ["objective=[{name: forward_kl}, {name: logit_mse, top_k: 9}]", "teacher.top_k=8"],
            Selection(top_k=9),
        ),
    ],
)
def test_what_is_kept_is_what_the_losses_read(
    models: Models, changes: list[str], kept: Selection
) -> None:
    assert at_work(models, *changes).kept == kept


@pytest.mark.parametrize("what", MATTERS)
def test_what_the_targets_depend_on_changes_their_fingerprint(
    models: Models, pairs: list[AlignedPair], what: str
) -> None:
    change, plain = MATTERS[what], at_work(models).fingerprint(pairs)
    assert plain == at_work(models).fingerprint(pairs)
    if isinstance(change, str):
        assert at_work(models, change).fingerprint(pairs) != plain
    else:
        assert at_work(models).fingerprint(change(pairs)) != plain


def test_the_teachers_weights_and_dtype_are_in_the_fingerprint(
    models: Models, pairs: list[AlignedPair], model_folders: dict[str, Path]
) -> None:
    made = {
        at_work(replace(models, teacher=teacher)).fingerprint(pairs)
        for teacher in (
            models.teacher,
            load(str(model_folders["opt"]), dtype="float32"),
            load(str(model_folders["llama"]), dtype="bfloat16"),
        )
    }
    assert len(made) == 3


@pytest.mark.parametrize(
    "change",
    [
        "training.learning_rate=0.1",
        "training.max_steps=3",
        "tuning.r=2",
        "evaluation.batch_size=1",
        "seed=4",  # the rows that it draws are in the pairs
        "objective={name: forward_kl, weight: 2}",
        "objective=[{name: forward_kl}, {name: cross_entropy}]",
        "teacher.store=elsewhere",
    ],
)
def test_what_the_student_alone_reads_does_not(
    models: Models, pairs: list[AlignedPair], change: str
) -> None:
    plain = at_work(models).fingerprint(pairs)
    assert at_work(models, change).fingerprint(pairs) == plain
    rows = [replace(pair, student_prompt=[7], row=pair.row + 1) for pair in pairs]
    assert at_work(models).fingerprint(rows) == plain


def lessons(teaching: Teaching, pairs: list[AlignedPair], store: Path) -> tuple[Any, bool]:
    """With whether all targets were there already."""
    made = teaching.lessons(pairs, teaching.recipe.objective, store)
    return made, "teach" in teaching.recorder.reused


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(Scorer, "score", fail)


def test_runs_that_share_a_store_score_once_and_tell_the_same_cost(
    models: Models, pairs: list[AlignedPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = f"teacher.store={tmp_path / 'shared'}"
    first = at_work(models, shared)
    made, reused = lessons(first, pairs, tmp_path / "first")
    assert not reused
    (told,) = (tmp_path / "shared").glob("*.spent.json")
    measured = json.loads(told.read_text())["teach"]
    assert measured["steps"] > 0
    assert measured["tokens"] >= sum(len(p.completion) for p in pairs)

    forbid(monkeypatch)
    second = at_work(models, shared, "training.max_steps=7")
    again, reused = lessons(second, pairs, tmp_path / "second")
    assert reused
    costs = [one.recorder.costs()["teach"] for one in (first, second)]
    assert (costs[1].tokens, costs[1].steps) == (costs[0].tokens, costs[0].steps)
    assert costs[1].wall_seconds >= costs[0].wall_seconds > 0
    for mine, theirs in zip(again, made, strict=True):
        assert mine.targets.logprobs_NK.tolist() == theirs.targets.logprobs_NK.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shared"]


def test_reading_a_whole_store_adds_nothing_to_what_it_cost(
    models: Models, pairs: list[AlignedPair], tmp_path: Path
) -> None:
    lessons(at_work(models), pairs, tmp_path)
    (told,) = tmp_path.glob("*.spent.json")
    measured = told.read_text()
    spent = []
    for _ in range(3):
        run = at_work(models)
        lessons(run, pairs, tmp_path)
        spent.append(run.recorder.spent("teach"))
    assert told.read_text() == measured
    assert spent == [json.loads(measured)["teach"]] * 3


def test_a_store_of_one_run_is_its_own_where_the_recipe_names_none(
    models: Models, pairs: list[AlignedPair], tmp_path: Path
) -> None:
    assert lessons(at_work(models), pairs, tmp_path / "one")[1] is False
    assert lessons(at_work(models), pairs, tmp_path / "other")[1] is False
    assert lessons(at_work(models), pairs, tmp_path / "one")[1] is True


def test_other_targets_stand_beside_those_that_are_there(
    models: Models, pairs: list[AlignedPair], tmp_path: Path
) -> None:
    for change in ("teacher.top_k=64", "teacher.top_k=9"):
        assert lessons(at_work(models, change), pairs, tmp_path)[1] is False
    for change in ("teacher.top_k=64", "teacher.top_k=9"):
        assert lessons(at_work(models, change), pairs, tmp_path)[1] is True


def test_students_of_another_width_have_targets_of_their_own(
    models: Models, pairs: list[AlignedPair], tmp_path: Path, llama: LanguageModel
) -> None:
    """Models of one family pad their vocabulary differently; probability beyond the student's is left out."""
    padded = models_of(replace(llama, network=tiny_llama(len(byte_tokenizer()) + 8)))
    lessons(at_work(models), pairs, tmp_path)
    _, reused = lessons(at_work(replace(models, student=padded.student)), pairs, tmp_path)
    assert not reused


def test_each_of_a_few_contexts_is_read_once_a_shard(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every row is scored under its own."""
    form = form_of(models.teacher)
    said = [
        Context.of(FewShot([{"input": word * 3, "output": "1"}] * 4)) for word in ("zebra", "lynx")
    ]
    pairs = [
        AlignedPair(
            n,
            teacher_prompt=form.prompt_ids(f"{n}", said[n % 2]),
            student_prompt=form.prompt_ids(f"{n}"),
            completion=[n + 5, n + 6],
        )
        for n in range(12)
    ]
    read: list[int] = []
    usual = reader.SharedPrefix

    def counted(network: Any, prompts: list[list[int]]) -> Any:
        read.append(len(prompts))
        return usual(network, prompts)

    monkeypatch.setattr(reader, "SharedPrefix", counted)
    together, _ = lessons(at_work(models), pairs, tmp_path / "together")
    assert read == [6, 6]
    monkeypatch.setattr(reader, "alike", lambda prompts: [[n] for n in range(len(prompts))])
    alone, _ = lessons(at_work(models), pairs, tmp_path / "alone")
    for one, other in zip(together, alone, strict=True):
        assert one.completion == other.completion
        assert one.targets.ids_NK.shape == other.targets.ids_NK.shape
        torch.testing.assert_close(
            one.targets.logprobs_NK, other.targets.logprobs_NK, atol=1.1 * STEP, rtol=0
        )


def test_a_loss_without_targets_asks_for_none(
    models: Models, pairs: list[AlignedPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch)
    run = at_work(models, "objective=[{name: cross_entropy}, {name: hidden_state}]")
    rows, reused = lessons(run, pairs, tmp_path)
    assert not reused
    assert [row.targets for row in rows] == [None] * len(pairs)
    assert [row.teacher_prompt for row in rows] == [pair.teacher_prompt for pair in pairs]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("hidden", [False, True])
def test_an_online_teacher_is_made_where_a_loss_needs_one(
    models: Models, pairs: list[AlignedPair], hidden: bool
) -> None:
    name = "hidden_state" if hidden else "forward_kl"
    run = at_work(models, f"objective=[{{name: {name}}}]")
    online = run.online(pairs, run.recipe.objective)
    assert (online is not None) == hidden
    rows, _ = lessons(at_work(models, "objective={name: cross_entropy}"), pairs, Path("."))
    assert rows[0].teacher_prompt is None


def test_a_run_that_goes_on_counts_its_teacher_once(
    models: Models, pairs: list[AlignedPair], tmp_path: Path
) -> None:
    """Both the run's own sums and the store remember what the first attempt has cost."""
    costs = []
    for _ in range(2):
        teaching = at_work(models)
        teaching.recorder.keep_at(tmp_path / "phases.json")
        lessons(teaching, pairs, tmp_path / "targets")
        teaching.recorder.keep()
        costs.append(teaching.recorder.costs()["teach"])
    assert costs[0].tokens > 0
    assert costs[1] == costs[0]


def test_targets_of_an_older_algorithm_are_not_read(
    models: Models, pairs: list[AlignedPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = at_work(models).fingerprint(pairs)
    monkeypatch.setattr("instil.teacher.lessons.ALGORITHM", -1)
    assert at_work(models).fingerprint(pairs) != plain
