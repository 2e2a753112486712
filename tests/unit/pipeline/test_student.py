"""Students of finished cells answer as the cells have judged them, on tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import save_tiny
from tests.small import QUIET, write_gsm8k

from instil.errors import DataFileError, FieldError
from instil.pipeline.cell import run_cell
from instil.pipeline.student import Student
from instil.recipe.recipe import Recipe
from instil.results.schema import PREDICTIONS, RESULTS, Prediction, Results
from instil.system.files import read_lines

Cell = Callable[[str], Path]

PATTERN = "{text}\n{other}\nGood?"
FORMS = {"good": ["Yes"], "bad": ["No"], "mixed": ["Nay"]}
TUNINGS = ("full", "lora", "bitfit")
HEADS = ("distillation", "vanilla_fine_tuning")

LABELS: dict[str, dict[str, Any]] = {
    f"{method}, {tuning}": {"method": method, "tuning": {"name": tuning}}
    for method in HEADS
    for tuning in TUNINGS
} | {
    "pattern_fine_tuning": {"method": "pattern_fine_tuning"},
    "in context": {"method": "pattern_fine_tuning_in_context", "tuning": {"name": "full"}},
    "keep_layers, lora": {"student": {"keep_layers": 1}},
    "keep_layers, full": {"student": {"keep_layers": [1]}, "tuning": {"name": "full"}},
    "keep_layers, head": {
        "method": "vanilla_fine_tuning",
        "student": {"keep_layers": 1},
        "tuning": {"name": "bitfit"},
    },
    "chat": {"prompt": {"format": "chat"}},
}
"""Cells whose students name labels: name -> what each has in place of the recipe below."""
OTHERS: dict[str, dict[str, Any]] = {
    "zero-shot": {"method": "zero_shot"},
    "not saved": {"method": "pattern_fine_tuning", "student": {"save": False}},
    "bfloat16, full": {
        "method": "pattern_fine_tuning",
        "tuning": {"name": "full"},
        "dtype": "bfloat16",
    },
    "bfloat16, lora": {"method": "pattern_fine_tuning", "dtype": "bfloat16"},
}
ROWS = {
    name: [
        {"text": f"{name} {n * 37 % 101}", "other": f"so {n}", "label": list(FORMS)[n % 3]}
        for n in range(number)
    ]
    for name, number in (("train", 30), ("here", 6), ("there", 4))
}


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> Cell:
    """The folder of a finished cell by its name; each is run once, and all share one store."""
    root = tmp_path_factory.mktemp("cells")
    for name, rows in ROWS.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"{name}.jsonl").write_text(text)
    labelled = {
        "model": str(model_folders["opt"]),
        "task": {
            "name": "classification",
            "folder": str(root),
            "prefix": "Judge.",
            "pattern": PATTERN,
            "verbalizer": FORMS,
            "train": "train.jsonl",
            "in_domain": {"here": "here.jsonl"},
            "out_of_domain": {"there": "there.jsonl"},
        },
        "demonstrations": {"k": 2},
        "training": {"rows": 8, "max_steps": 3, "batch_size": 4, "learning_rate": 0.02},
        "dtype": "float32",
    }
    solved = {
        "model": str(save_tiny(root / "wide", "llama", window=2048)),
        "task": {"name": "gsm8k", "folder": str(write_gsm8k(root)), "prefix": "Think."},
        "method": "pattern_fine_tuning_in_context",
        "demonstrations": {"k": 2},
        "teacher": {"max_new_tokens": 6},
        "training": {"rows": 6, "max_steps": 4, "batch_size": 3, "learning_rate": 0.02},
        "evaluation": {"rows": 5, "rows_out_of_domain": 3},
        "dtype": "float32",
    }

    for name, numbers in (("own", range(10, 22)), ("demos", range(3))):
        lines = (json.dumps({"input": f"{n}", "output": f"{n + 1}"}) + "\n" for n in numbers)
        (root / f"{name}.jsonl").write_text("".join(lines))
    files = {
        "model": str(model_folders["llama"]),
        "task": {
            "name": "files",
            "inputs": "own.jsonl",
            "demos": "demos.jsonl",
            "folder": str(root),
        },
        "prompt": {"format": "plain"},
        "teacher": {"max_new_tokens": 4},
        "training": {"max_steps": 6, "batch_size": 4, "learning_rate": 0.05},
        "dtype": "float32",
    }

    @cache
    def run(name: str) -> Path:
        text = {"text": solved, "files": files}
        settings = text.get(name) or labelled | (LABELS | OTHERS)[name]
        run_cell(Recipe.parse(settings), root / name, store=root / "store", display=QUIET)
        return root / name

    return run


def said(folder: Path) -> list[Prediction]:
    return read_lines(Prediction, folder / PREDICTIONS)


def fields_of(lines: list[Prediction]) -> list[Mapping[str, object]]:
    """The fields of the rows that a cell's predictions are about."""
    known = {PATTERN.format(**row): row for rows in ROWS.values() for row in rows}
    return [known[line.input] for line in lines]


def values(probabilities: list[dict[str, float]]) -> torch.Tensor:
    return torch.tensor([[one[label] for label in FORMS] for one in probabilities])


@pytest.mark.parametrize("name", LABELS)
def test_a_student_of_labels_answers_as_it_was_judged(cell: Cell, name: str) -> None:
    lines = said(cell(name))
    student = Student.load(cell(name))
    expected = values([line.probabilities for line in lines])
    got = student.probabilities(fields_of(lines))
    assert [list(one) for one in got] == [list(FORMS)] * 10
    torch.testing.assert_close(values(got), expected, atol=2e-6, rtol=0)
    assert student.answer(fields_of(lines)) == [line.predicted for line in lines]
    head = student.results.method == "vanilla_fine_tuning"
    assert (student.tokens is None) == head
    if not head:  # the weights that it has learnt are at work
        base = values([line.probabilities for line in said(cell("zero-shot"))])
        assert (expected - base).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["keep_layers, lora", "keep_layers, full", "keep_layers, head"])
def test_a_student_of_fewer_layers_has_no_more_of_them(cell: Cell, name: str) -> None:
    network: Any = Student.load(cell(name)).model.network
    assert network.config.num_hidden_layers == 1
    assert not [n for n, _ in network.named_parameters() if "layers.1." in n]


@pytest.mark.parametrize(("tuning", "kept"), [("full", torch.float32), ("lora", torch.bfloat16)])
def test_a_student_is_computed_in_the_dtype_that_it_was_judged_in(
    cell: Cell, tuning: str, kept: torch.dtype
) -> None:
    lines = said(cell(f"bfloat16, {tuning}"))
    student = Student.load(cell(f"bfloat16, {tuning}"))
    assert student.model.network.get_input_embeddings().weight.dtype == kept
    expected = values([line.probabilities for line in lines])
    got = values(student.probabilities(fields_of(lines)))
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0)
    assert student.results.dtype == "bfloat16"


def test_a_student_of_text_answers_as_it_was_judged(cell: Cell) -> None:
    """With the context before each query, which it has learnt to read."""
    lines = said(cell("text"))
    student = Student.load(cell("text"))
    queries = [line.input for line in lines]
    assert student.answer(queries) == [line.text for line in lines]
    assert student.answer([{"question": query} for query in queries[:2]]) == [
        line.text for line in lines[:2]
    ]
    with pytest.raises(TypeError, match="answers with free text and has no labels"):
        student.probabilities(queries)


def test_a_student_of_own_rows_answers_as_it_was_judged(cell: Cell) -> None:
    lines = said(cell("files"))
    student = Student.load(cell("files"))
    answers = [line.text for line in lines]
    assert student.answer([line.input for line in lines]) == answers
    rows = [{"input": line.input, "output": "unread"} for line in lines]
    assert student.answer(rows) == answers
    with pytest.raises(FieldError, match=r"query 1: there is no field 'input'.*got: fields 'text'"):
        student.answer([{"text": "20"}])


def test_a_query_has_the_fields_that_the_pattern_names(cell: Cell) -> None:
    student = Student.load(cell("distillation, lora"))
    with pytest.raises(FieldError, match=r"query 2: .* several fields.*'other', 'text'"):
        student.answer([ROWS["here"][0], "a text"])
    with pytest.raises(FieldError, match="query 1: there is no field 'other'"):
        student.probabilities([{"text": "a text"}])
    labelled, bare = ROWS["here"][0], {"text": "here 0", "other": "so 0"}
    assert student.probabilities([labelled]) == student.probabilities([bare])


@pytest.mark.parametrize("query", ["a text", {"text": "a", "other": "b"}])
def test_one_query_in_place_of_a_list_is_refused(cell: Cell, query: Any) -> None:
    for name in ("distillation, lora", "text"):
        with pytest.raises(TypeError, match=r"queries must be a list.*pass \[query\]"):
            Student.load(cell(name)).answer(query)


def test_no_queries_have_no_answers(cell: Cell) -> None:
    assert Student.load(cell("distillation, lora")).answer([]) == []
    assert Student.load(cell("text")).answer([]) == []


@pytest.mark.parametrize("name", ["zero-shot", "not saved"])
def test_a_folder_without_weights_has_no_student(cell: Cell, name: str) -> None:
    with pytest.raises(DataFileError, match=r"holds no trained weights.*student\.save"):
        Student.load(cell(name))


def test_a_folder_that_is_no_run_has_no_student(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"results\.json: no such file"):
        Student.load(tmp_path)


@pytest.mark.parametrize("name", ["files", "zero-shot"])
def test_the_model_is_recorded_as_it_is_found_from_everywhere(cell: Cell, name: str) -> None:
    found = Results.read(cell(name) / RESULTS)
    assert found.model_source == found.model
    assert found.teacher_source is None


def test_a_student_is_found_from_another_folder(
    cell: Cell, model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(cell("files"), tmp_path / "run")
    results = Results.read(run / RESULTS)
    typed = {"model": "./llama", "recipe": results.recipe | {"model": "./llama"}}
    results.model_copy(update=typed).write(run / RESULTS)
    monkeypatch.chdir(tmp_path)
    assert Student.load(run).model.source.path == str(model_folders["llama"])
    # Where the recorded folder is gone, the name that was typed may still lead to the model.
    gone = typed | {"model_source": str(tmp_path / "gone")}
    results.model_copy(update=gone).write(run / RESULTS)
    monkeypatch.chdir(model_folders["llama"].parent)
    assert Student.load(run).model.source.path == str(model_folders["llama"])
