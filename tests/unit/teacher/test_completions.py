"""What a teacher writes: stored, read again, and counted once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import CONTEXT, QUIET, ROWS, form_of, models_of

from instil.errors import ContextError
from instil.models.generate import Decoding, Generated
from instil.models.load import LanguageModel
from instil.models.roles import Models
from instil.prompts.context import Context
from instil.prompts.rendered import RenderedRows
from instil.recipe.grid import override
from instil.recipe.recipe import Recipe
from instil.system.costs import Recorder
from instil.system.progress import Display
from instil.tasks.rows import Row
from instil.teacher import completions
from instil.teacher.completions import Writer
from instil.teacher.journal import Journal

LIMIT = 6
SAMPLED = ("teacher.samples=2", "teacher.sampling_temperature=1")
Writes = Callable[..., Writer]


@pytest.fixture
def models(llama: LanguageModel) -> Models:
    return models_of(llama)


@pytest.fixture
def rows(models: Models) -> RenderedRows:
    return RenderedRows.of("input", ROWS, form_of(models.teacher), CONTEXT, gold=True)


@pytest.fixture
def writer(models: Models, tmp_path: Path) -> Writes:
    """A writer with a recorder of its own; all of a test share one store."""

    def make(*changes: str, store: Path | None = None, display: Display = QUIET) -> Writer:
        recipe = Recipe.parse(override({"model": models.student.name}, changes))
        form, folder = form_of(models.teacher), store or tmp_path / "store"
        return Writer(recipe, models, form.ending, folder, Recorder(), display)

    return make


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts the teacher was asked, each time that it was."""
    seen: list[int] = []
    usual = completions.completed

    def counted(*args: Any, known: Collection[int], **more: Any) -> Any:
        seen.append(len(args[1]) - len(known))
        return usual(*args, known=known, **more)

    monkeypatch.setattr(completions, "completed", counted)
    return seen


def generated(writer: Writer) -> tuple[int, int]:
    """Tokens and steps that the teacher's writing has cost."""
    cost = writer.recorder.costs()["generate"]
    return cost.tokens, cost.steps


def test_gold_completions_ask_no_teacher(
    writer: Writes, rows: RenderedRows, asked: list[int], tmp_path: Path
) -> None:
    gold = writer("teacher.completions=gold")
    learnt, cut = gold.learnt(rows, max_new_tokens=LIMIT)
    assert ([*learnt], cut) == ([*enumerate(rows.need_gold())], 0)
    assert asked == []
    assert not (tmp_path / "store").exists()
    bare = replace(rows, gold=[None, *rows.gold[1:]])
    with pytest.raises(ContextError, match="input 1 has no output"):
        gold.learnt(bare, max_new_tokens=LIMIT)


def test_what_is_written_is_what_the_teacher_s_base_decodes(
    writer: Writes, rows: RenderedRows, models: Models
) -> None:
    learnt, cut = writer().learnt(rows, max_new_tokens=LIMIT)
    with models.adapter(on=False):
        made = models.teacher.network.generate  # type: ignore[attr-defined]
        for (number, ids), prompt in zip(learnt, rows.teacher_prompts, strict=True):
            assert prompt == rows.teacher_prompts[number]
            ids_BL = torch.tensor([prompt], device=models.teacher.device)
            plain = made(ids_BL, max_new_tokens=LIMIT, do_sample=False)
            assert ids == plain[0, len(prompt) :].tolist()[: len(ids)]
    assert cut == sum(len(ids) == LIMIT for _, ids in learnt)


def test_what_is_stored_is_read_again_and_says_what_it_has_cost(
    writer: Writes, rows: RenderedRows, asked: list[int]
) -> None:
    first, again = writer(), writer("training.max_steps=7")
    learnt = first.learnt(rows, max_new_tokens=LIMIT)
    assert again.learnt(rows, max_new_tokens=LIMIT) == learnt
    assert asked == [len(ROWS)]
    assert generated(again) == generated(first)
    assert min(generated(first)) > 0
    assert (first.recorder.reused, again.recorder.reused) == (set(), {"generate"})
    held_out = again.stored(rows.teacher_prompts, Decoding(LIMIT))
    assert [one.ids for one in held_out] == [ids for _, ids in learnt[0]]
    assert asked == [len(ROWS)]


def test_a_store_that_the_recipe_names_is_used(
    writer: Writes, rows: RenderedRows, asked: list[int], tmp_path: Path
) -> None:
    named = f"teacher.store={tmp_path / 'shared'}"
    for own in ("one", "other"):
        writer(named, store=tmp_path / own).learnt(rows, max_new_tokens=LIMIT)
    assert asked == [len(ROWS)]
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


@pytest.mark.parametrize(
    "change",
    ["another limit", "other samples", "another seed of samples", "another context", "other stops"],
)
def test_another_question_has_another_answer(
    writer: Writes, rows: RenderedRows, models: Models, asked: list[int], change: str
) -> None:
    sampled = "seed" in change
    plain = writer(*(SAMPLED if sampled else ()))
    plain.learnt(rows, max_new_tokens=LIMIT)
    before = len(asked)
    other, limit = plain, LIMIT
    if change == "another limit":
        limit = LIMIT + 1
    elif change == "other samples":
        other = writer(*SAMPLED)
    elif sampled:
        other = writer(*SAMPLED, "seed=1")
    elif change == "another context":
        rows = RenderedRows.of(
            "input", ROWS, form_of(models.teacher), Context(instruction="Add."), gold=True
        )
    else:
        other = replace(plain, ending=replace(plain.ending, stop=[";"]))
    other.learnt(rows, max_new_tokens=limit)
    assert len(asked) == before + (2 if "samples" in change else 1)


def test_the_seed_of_greedy_answers_does_not_count(
    writer: Writes, rows: RenderedRows, asked: list[int]
) -> None:
    one, other = (writer(f"seed={seed}").learnt(rows, max_new_tokens=LIMIT) for seed in (0, 1))
    assert one == other
    assert len(asked) == 1


def test_each_sample_is_written_and_counted(writer: Writes, rows: RenderedRows) -> None:
    sampled, one = writer(*SAMPLED), writer("teacher.sampling_temperature=1")
    learnt, _ = sampled.learnt(rows, max_new_tokens=LIMIT)
    assert [number for number, _ in learnt] == [*range(len(ROWS))] * 2
    assert learnt[: len(ROWS)] != learnt[len(ROWS) :]
    assert one.learnt(rows, max_new_tokens=LIMIT)[0] == learnt[: len(ROWS)]
    assert generated(sampled)[1] == 2 * generated(one)[1]
    assert generated(sampled)[0] > generated(one)[0]


def test_what_was_cut_is_counted_and_told(
    writer: Writes, rows: RenderedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Display, "warn", lambda self, text: told.append(text))
    made = [Generated([5], True), Generated([5] * LIMIT, False)]
    batch = ([0, 1], made, 9)
    monkeypatch.setattr(completions, "completed", lambda *args, **more: iter([batch]))
    two = replace(rows, rows=rows.rows[:2], teacher_prompts=rows.teacher_prompts[:2])
    learnt, cut = writer().learnt(two, max_new_tokens=LIMIT)
    assert ([len(ids) for _, ids in learnt], cut) == ([1, LIMIT], 1)
    assert told == [
        f"1 of 2 completions were cut at {LIMIT} tokens; increase teacher.max_new_tokens so that "
        "the teacher can finish"
    ]
    writer().stored(two.teacher_prompts, Decoding(LIMIT))  # nobody learns from them
    assert len(told) == 1


def lines_of(store: Path) -> list[bytes]:
    (path,) = store.glob("completions-*.jsonl")
    return path.read_bytes().splitlines(keepends=True)


def small_batches(writer: Writer) -> Writer:
    """The same writer, which decodes one row at a time."""
    evaluation = writer.recipe.evaluation.model_copy(update={"batch_size": 1})
    return replace(writer, recipe=writer.recipe.model_copy(update={"evaluation": evaluation}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda line: line[: len(line) // 2], False),
        (lambda line: line.replace(b'"finished": [false', b'"finished": [true', 1), True),
        (lambda line: line.replace(b"sha256", b"sha255"), True),
        (lambda line: b"[1, 2]\n", True),
        (lambda line: b"\xff\xfe\n", True),
        (lambda line: b"", False),
    ],
    ids=["cut off", "changed", "without a digest", "another kind", "not text", "lost"],
)
def test_only_what_is_lost_or_damaged_is_written_again(
    writer: Writes,
    rows: RenderedRows,
    asked: list[int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
    told: bool,
) -> None:
    learnt = small_batches(writer()).learnt(rows, max_new_tokens=2)
    (path,) = (tmp_path / "store").glob("completions-*.jsonl")
    *whole, last = lines_of(tmp_path / "store")
    assert b'"finished": [false' in last
    path.write_bytes(b"".join(whole) + damage(last))
    again = small_batches(writer())
    with caplog.at_level(logging.WARNING):
        assert again.learnt(rows, max_new_tokens=2) == learnt
    assert (f"{path} is damaged; the teacher generates what is missing" in caplog.text) == told
    assert asked == [len(ROWS), 1]
    assert again.recorder.reused == set()
    assert json.loads(lines_of(tmp_path / "store")[-1])["ids"] == json.loads(last)["ids"]
    assert writer().learnt(rows, max_new_tokens=2) == learnt
    assert len(asked) == 2


def test_a_teacher_that_is_killed_goes_on_with_the_same_batches(
    writer: Writes,
    rows: RenderedRows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two = writer(*SAMPLED[1:], "evaluation.batch_size=2", store=tmp_path / "whole")
    learnt = two.learnt(rows, max_new_tokens=LIMIT)
    usual, seen = Journal.append, []

    def killed(self: Journal, numbers: Sequence[int], *rest: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(list(numbers))
        usual(self, numbers, *rest)

    monkeypatch.setattr(Journal, "append", killed)
    cut = writer(*SAMPLED[1:], "evaluation.batch_size=2")
    with pytest.raises(KeyboardInterrupt):
        cut.learnt(rows, max_new_tokens=LIMIT)
    monkeypatch.undo()
    again = writer(*SAMPLED[1:], "evaluation.batch_size=2")
    assert again.learnt(rows, max_new_tokens=LIMIT) == learnt
    made = [json.loads(line) for line in lines_of(tmp_path / "store")]
    plain = [json.loads(line) for line in lines_of(tmp_path / "whole")]
    assert len(plain) == 3
    assert [batch["rows"] for batch in made] == [batch["rows"] for batch in plain]
    assert [batch["ids"] for batch in made] == [batch["ids"] for batch in plain]
    assert again.recorder.costs()["generate"].steps == len(plain)


@pytest.mark.parametrize("learns", [True, False])
def test_a_run_that_resumes_counts_its_teacher_once(
    writer: Writes, rows: RenderedRows, models: Models, tmp_path: Path, learns: bool
) -> None:
    """Its sums of an earlier attempt hold what the store has cost already, whoever was asked first."""
    others = [Row(f"{n}") for n in range(3)]
    judged = RenderedRows.of("row", others, form_of(models.teacher), CONTEXT, gold=True)
    costs = []
    for _ in range(3):
        attempt = writer(*SAMPLED)
        attempt.recorder.keep_at(tmp_path / "phases.json")
        if learns:
            attempt.learnt(rows, max_new_tokens=LIMIT)
        attempt.stored(judged.teacher_prompts, Decoding(LIMIT))
        attempt.recorder.keep()
        costs.append(generated(attempt))
    assert costs[0][1] == (3 if learns else 1)
    assert costs == [costs[0]] * 3


def test_completions_of_an_older_algorithm_are_not_read(
    writer: Writes, rows: RenderedRows, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        writer().learnt(rows, max_new_tokens=LIMIT)
    assert asked == [len(rows.rows)]
    monkeypatch.setattr(completions, "ALGORITHM", completions.ALGORITHM + 1)
    writer().learnt(rows, max_new_tokens=LIMIT)
    assert asked == [len(rows.rows)] * 2
