"""The rows of a recipe, drawn and checked, and the contexts that they are read under."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.small import SHOTS, write_gsm8k

from instil.errors import ConfigError, ContextError, DataFileError, FieldError, OverlapError
from instil.pipeline import rows as module
from instil.pipeline.given import Given, RowContexts, needs_gold
from instil.pipeline.rows import CellRows, check_checkpoints, problems_of_rows
from instil.prompts.context import Context, FewShot, Instruction
from instil.recipe.recipe import Recipe
from instil.tasks import Files
from instil.tasks.classification import Classification
from instil.tasks.files import ROWS
from instil.tasks.rows import Row
from instil.tasks.split import EvaluationSet

Write = Callable[[str, list[dict[str, Any]]], Path]
LEARNING = ("pattern_fine_tuning", "pattern_fine_tuning_in_context", "distillation")


def solved(start: int, end: int) -> list[dict[str, Any]]:
    return [{"input": f"{n}", "output": f"{n + 1}"} for n in range(start, end)]


def recipe(task: dict[str, Any], **sections: Any) -> Recipe:
    return Recipe.parse({"model": "tiny", "task": task, **sections})


@pytest.fixture
def files(jsonl: Write) -> dict[str, Any]:
    """The task `files` with all that it may name."""
    instruction = jsonl("instruction.txt", [])
    instruction.write_text("Add one.")
    return {
        "name": "files",
        "inputs": str(jsonl("inputs.jsonl", solved(10, 22))),
        "eval": str(jsonl("eval.jsonl", solved(30, 36))),
        "demos": str(jsonl("demos.jsonl", solved(0, 3))),
        "instruction": str(instruction),
    }


@pytest.fixture
def labelled(jsonl: Write) -> dict[str, Any]:
    """A task of labels, in local files."""

    def write(name: str, number: int) -> str:
        rows = [{"text": f"{name} {n}", "label": "ab"[n % 2]} for n in range(number)]
        return str(jsonl(f"{name}.jsonl", rows))

    return {
        "name": "classification",
        "prefix": "Judge.",
        "pattern": "{text}\nGood?",
        "verbalizer": {"a": ["Yes", "yes"], "b": ["No"]},
        "train": write("train", 20),
        "in_domain": {"here": write("here", 5)},
        "out_of_domain": {"there": write("there", 4)},
    }


@pytest.fixture
def gsm8k(tmp_path: Path) -> dict[str, Any]:
    """A task of questions, in a local copy."""
    folder = tmp_path / "sets"
    folder.mkdir()
    return {"name": "gsm8k", "folder": str(write_gsm8k(folder)), "prefix": "Think."}


def test_own_rows_are_read_with_the_one_context_of_all(files: dict[str, Any]) -> None:
    made = CellRows.of(recipe(files))
    assert [row.input for row in made.drawn.training] == [f"{n}" for n in range(10, 22)]
    (one,) = made.drawn.sets
    assert (one.name, one.domain, len(one.rows)) == (ROWS, "in", 6)
    assert (made.drawn.pool, made.drawn.validation, made.drawn.left_out) == ([], [], 0)
    assert made.context == Context.of([Instruction("Add one."), FewShot(solved(0, 3))])
    assert made.alone == Context()
    queries = one.rows[:2]
    for number in range(2):
        assert made.contexts.contexts(number, queries, "any") == [made.context] * 2


@pytest.mark.parametrize("method", ["zero_shot", "pattern_fine_tuning"])
def test_a_context_that_no_method_reads_is_not_read(
    files: dict[str, Any], tmp_path: Path, method: str
) -> None:
    unread = files | {"demos": str(tmp_path / "gone.jsonl")}
    assert CellRows.of(recipe(unread, method=method)).context == Context()
    baselines = {"baselines": ["in_context"]}
    with pytest.raises(DataFileError, match=r"gone\.jsonl"):
        CellRows.of(recipe(unread, method=method, evaluation=baselines))
    without = {key: value for key, value in files.items() if key not in ("demos", "instruction")}
    with pytest.raises(ContextError, match="no context to distil"):
        CellRows.of(recipe(without))


def test_rows_that_are_given_take_the_place_of_files() -> None:
    given = Given(Context(instruction="Add."), [Row("1", "2"), Row("3")], {"mine": [Row("5")]})
    made = CellRows.of(recipe({"name": "files"}), given)
    assert made.drawn.training == given.inputs
    assert made.drawn.sets == [EvaluationSet("mine", "in", [Row("5")])]
    assert made.context == given.context
    assert made.contexts == RowContexts(given.context, from_logs=False)


def test_inputs_are_held_out_where_no_evaluation_rows_are_named(files: dict[str, Any]) -> None:
    asked = recipe(files | {"eval": None})
    assert isinstance(asked.task, Files)
    assert Given.read(asked, asked.task).held_out is None
    drawn = CellRows.of(asked).drawn
    (one,) = drawn.sets
    assert (len(one.rows), len(drawn.training)) == (2, 10)
    every = {row.input for row in (*one.rows, *drawn.training)}
    assert every == {f"{n}" for n in range(10, 22)}
    assert CellRows.of(asked).drawn == drawn
    others = [CellRows.of(recipe(files | {"eval": None}, seed=seed)).drawn for seed in range(1, 5)]
    assert any(other.sets != drawn.sets for other in others)


def test_validation_rows_are_taken_from_the_inputs_where_steps_are_watched(
    files: dict[str, Any],
) -> None:
    watched = {"at_steps": 2, "validation_rows": 4}
    drawn = CellRows.of(recipe(files, evaluation=watched)).drawn
    assert (len(drawn.validation), len(drawn.training)) == (4, 8)
    assert not {row.input for row in drawn.validation} & {row.input for row in drawn.training}
    unwatched = CellRows.of(recipe(files, evaluation={"validation_rows": 4})).drawn
    assert (len(unwatched.validation), len(unwatched.training)) == (0, 12)


def test_a_row_that_is_learnt_or_shown_is_not_judged_on(files: dict[str, Any]) -> None:
    for name, other in (("training inputs", "inputs"), ("demonstrations", "demos")):
        leaking = files | {"eval": files[other]}
        with pytest.raises(OverlapError, match=f"also among the {name}"):
            CellRows.of(recipe(leaking))
        CellRows.of(recipe(leaking | {"allow_overlap": True}))


def test_rows_that_no_answer_can_be_right_on_are_refused(
    files: dict[str, Any], jsonl: Write
) -> None:
    words = str(jsonl("words.jsonl", [{"input": "six", "output": "seven"}]))
    numbers = {"metrics": ["exact", "number"]}
    CellRows.of(recipe(files, evaluation=numbers))
    CellRows.of(recipe(files | {"eval": words}))
    message = "evaluation rows, row 1: no answer can be right by the metric 'number'"
    with pytest.raises(FieldError, match=message):
        CellRows.of(recipe(files | {"eval": words}, evaluation=numbers))


@pytest.mark.parametrize(
    ("sections", "needed"),
    [
        ({}, False),
        ({"method": "in_context"}, False),
        ({"method": "zero_shot", "teacher": {"completions": "gold"}}, False),
        ({"teacher": {"completions": "gold"}}, True),
        ({"method": "pattern_fine_tuning"}, True),
        ({"method": "pattern_fine_tuning_in_context"}, True),
    ],
    ids=str,
)
def test_outputs_are_needed_where_they_are_learnt(
    files: dict[str, Any], jsonl: Write, sections: dict[str, Any], needed: bool
) -> None:
    bare = jsonl("bare.jsonl", [{"input": "90"}, {"input": "91"}])
    asked = recipe(files | {"inputs": str(bare)}, **sections)
    assert needs_gold(asked) == needed
    if not needed:
        assert len(CellRows.of(asked).drawn.training) == 2
        return
    with pytest.raises(FieldError, match=r"bare\.jsonl, line 1: there is no field 'output'"):
        CellRows.of(asked)


def test_a_task_of_labels_shows_the_first_form_of_each_label(labelled: dict[str, Any]) -> None:
    asked = recipe(labelled, demonstrations={"k": 4}, training={"rows": 6})
    made = CellRows.of(asked)
    assert [(one.name, one.domain, len(one.rows)) for one in made.drawn.sets] == [
        ("here", "in", 5),
        ("there", "out", 4),
    ]
    assert (len(made.drawn.training), len(made.drawn.pool), made.context) == (6, 14, None)
    assert made.alone == Context(instruction="Judge.")
    first, second = made.contexts.contexts(0, made.drawn.training[:2], "training rows")
    assert first == second
    assert first.instruction == "Judge."
    shown = [(row.input, row.output) for row in first.demonstrations]
    pool = {row.input: row.output for row in made.drawn.pool}
    assert sorted(output or "" for _, output in shown) == ["No", "No", "Yes", "Yes"]
    assert all({"a": "Yes", "b": "No"}[pool[text] or ""] == output for text, output in shown)
    assert made.contexts.contexts(1, made.drawn.training[:1], "training rows") != [first]
    without = CellRows.of(recipe(labelled | {"prefix": ""}))
    assert without.alone == Context()


def test_a_task_of_questions_shows_its_answers_as_they_are(gsm8k: dict[str, Any]) -> None:
    asked = {"demonstrations": {"k": 2}, "training": {"rows": 5}, "evaluation": {"rows": 4}}
    made = CellRows.of(recipe(gsm8k, **asked))
    assert [len(one.rows) for one in made.drawn.sets] == [4, 4]
    assert made.alone == Context(instruction="Think.")
    (shown,) = made.contexts.contexts(0, made.drawn.training[:1], "training rows")
    assert set(shown.demonstrations) <= set(made.drawn.pool)
    brought = CellRows.of(recipe(gsm8k | {"prompt": "wei"}, **asked))
    (shown,) = brought.contexts.contexts(0, brought.drawn.training[:1], "training rows")
    assert [row.input for row in shown.demonstrations] == [one["question"] for one in SHOTS[:2]]


def test_a_task_s_rows_take_the_numbers_of_the_recipe(labelled: dict[str, Any]) -> None:
    sections = {"evaluation": {"rows": 3, "rows_out_of_domain": 2}, "demonstrations": {"pool": 4}}
    drawn = CellRows.of(recipe(labelled, **sections)).drawn
    assert [len(one.rows) for one in drawn.sets] == [3, 2]
    assert (len(drawn.training), len(drawn.pool)) == (10, 4)
    with pytest.raises(ConfigError, match=r"training\.rows is 20, but"):
        CellRows.of(recipe(labelled, training={"rows": 20}))


@pytest.mark.parametrize(
    ("sections", "last"),
    [
        ({"training": {"epochs": 1, "batch_size": 4}}, 3),
        ({"training": {"epochs": 2, "batch_size": 4, "grad_accumulation": 3}}, 2),
        ({"training": {"batch_size": 12}}, 60),
        (
            {
                "training": {"epochs": 1, "batch_size": 4},
                "teacher": {"samples": 2, "sampling_temperature": 1.0},
            },
            6,
        ),
        ({"training": {"epochs": 1, "batch_size": 4}, "method": "pattern_fine_tuning"}, 3),
    ],
)
def test_a_checkpoint_after_the_end_of_training_is_refused(
    files: dict[str, Any], sections: dict[str, Any], last: int
) -> None:
    def watched(step: Any, **more: Any) -> Recipe:
        return recipe(files, **(sections | {"evaluation": {"at_steps": step}} | more))

    check_checkpoints(watched([1, last]), 12)
    check_checkpoints(watched(last + 1), 12)  # each N steps, and at the end
    check_checkpoints(watched([last + 1], method="zero_shot"), 12)
    with pytest.raises(ConfigError, match=rf"got: step {last + 1}; training has {last} steps"):
        check_checkpoints(watched([1, last + 1]), 12)


def test_problems_of_own_rows_are_told_each_once(files: dict[str, Any], jsonl: Write) -> None:
    assert problems_of_rows([recipe(files)]) == []
    bare = files | {"inputs": str(jsonl("bare.jsonl", [{"input": "90"}, {"input": "91"}]))}
    leaking = files | {"eval": files["inputs"]}
    recipes = [
        *(recipe(bare, method=method) for method in ("zero_shot", *LEARNING)),
        *(recipe(leaking, seed=seed) for seed in range(2)),
        recipe({"name": "files"}),
        recipe(files | {"inputs": "caf\udce9.jsonl"}),
        recipe(files),
    ]
    told = problems_of_rows(recipes)
    assert [text.partition(";")[0].rpartition("/")[2] for text in told] == [
        "bare.jsonl, line 1: there is no field 'output'",
        "12 of 12 evaluation rows are also among the training inputs",
        "the task `files` needs inputs",
        "'caf\\udce9.jsonl': the name of the file is not UTF-8",
    ]


def test_own_rows_of_many_cells_are_read_once(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bool] = []
    usual = Files.piles

    def counted(self: Files, *, need_output: bool, logprobs: bool) -> Any:
        read.append(need_output)
        return usual(self, need_output=need_output, logprobs=logprobs)

    monkeypatch.setattr(Files, "piles", counted)
    recipes = [
        recipe(files, seed=seed, method=m) for seed in range(3) for m in ("zero_shot", *LEARNING)
    ]
    assert problems_of_rows(recipes) == []
    assert len(read) < len(recipes)
    assert sorted(set(read)) == [False, True]
    assert read.count(True) <= 2  # with a context and without


def test_problems_of_a_task_s_rows_are_found_with_one_reading(
    labelled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    usual = Classification.read

    def counted(self: Classification) -> Any:
        read.append(self.pattern)
        return usual(self)

    monkeypatch.setattr(Classification, "read", counted)
    other = labelled | {"pattern": "Text: {text}\nGood?"}
    recipes = [
        recipe(task, seed=seed, demonstrations={"k": k})
        for task in (labelled, other)
        for seed in range(2)
        for k in (1, 2)
    ]
    assert problems_of_rows(recipes) == []
    assert read == [labelled["pattern"], other["pattern"]]


def test_more_demonstrations_than_there_are_rows_are_a_problem(
    labelled: dict[str, Any], gsm8k: dict[str, Any]
) -> None:
    many = {"demonstrations": {"k": 11}}
    assert problems_of_rows([recipe(labelled, method="zero_shot", **many)]) == []
    (told,) = problems_of_rows([recipe(labelled, method="in_context", **many)])
    assert "demonstrations.k is 11, but the number of rows for demonstrations is 10" in told
    few = {"demonstrations": {"k": 8, "pool": 2}, "method": "in_context"}
    (told,) = problems_of_rows([recipe(gsm8k, **few)])
    assert "is 8, but the number of rows for demonstrations is 2" in told
    assert problems_of_rows([recipe(gsm8k | {"prompt": "wei"}, **few)]) == []


def test_sets_of_the_hub_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "draw_for", lambda *args: pytest.fail("it was read"))
    assert problems_of_rows([recipe({"name": "gsm8k"}), recipe({"name": "sentiment"})]) == []


def test_a_malformed_file_is_a_problem(labelled: dict[str, Any]) -> None:
    Path(labelled["train"]).write_text(json.dumps({"text": "one", "label": "c"}) + "\n")
    (told,) = problems_of_rows([recipe(labelled), recipe(labelled, seed=1)])
    assert "line 1: the field 'label' does not hold a label of this task" in told
