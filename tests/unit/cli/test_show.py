"""`instil show` and `instil try`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.small import QUIET
from tests.unit.pipeline.test_conversations import logs
from typer.testing import CliRunner

from instil import cli
from instil.models.load import outline
from instil.pipeline import cell
from instil.pipeline.showing import show
from instil.pipeline.trying import Trial
from instil.recipe.recipe import Recipe

Write = Callable[[str, list[dict[str, Any]]], Path]


def run(*arguments: str | Path, typed: str = "") -> Any:
    return CliRunner().invoke(
        cli.app, [str(one) for one in arguments], input=typed, env={"COLUMNS": "160"}
    )


@pytest.mark.parametrize("completions", ["teacher", "gold"])
def test_each_side_is_shown_in_pieces(
    model_folders: dict[str, Path], jsonl: Write, completions: str
) -> None:
    recipe = Recipe.parse(
        {
            "model": str(model_folders["llama"]),
            "task": {
                "name": "files",
                "inputs": jsonl("x.jsonl", logs(3)),
                "context_from_logs": True,
            },
            "teacher": {"completions": completions},
        }
    )
    turns = show(recipe, outline(recipe.model), 2)
    assert [turn.title for turn in turns] == ["answer 1 of 2", "answer 2 of 2"]
    teacher, student = turns[1].teacher, turns[1].student
    assert [one.kind for one in teacher] == ["said", "context", "said", "answer"]
    assert "sells lamps" in teacher[1].text
    assert "lamp 1 part 0?" in teacher[2].text
    assert [one.kind for one in student] == ["said", "said", "answer"]
    assert (turns[1].logged is None) == (completions == "gold")
    if completions == "gold":
        assert teacher[-1].text == student[-1].text == "ok 11<|end|>"


def test_a_row_is_shown_in_the_terminal_and_as_a_page(
    model_folders: dict[str, Path], jsonl: Write, tmp_path: Path
) -> None:
    file, page = jsonl("x.jsonl", logs(3)), tmp_path / "page.html"
    model = model_folders["llama"]
    common = ("show", file, "--model", model, "--context-from-logs")
    shown = run(*common, "--row", "3", "--html", page)
    assert shown.exit_code == 0, shown.output
    for text in ("answer 2 of 2", "sells lamps", "lamp 2 part 1?", "logged answer: ok 21"):
        assert text in shown.output
    assert "sells lamps" in page.read_text()
    assert "&lt;|start|&gt;" in page.read_text()
    wrong = run(*common, "--row", "9")
    assert wrong.exit_code == 2
    assert "--row 9: there is no such row; allowed: 1 to 3" in wrong.output


@pytest.fixture(scope="module")
def finished(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on conversations."""
    folder = tmp_path_factory.mktemp("tried")
    file = folder / "logs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in logs(8)))
    recipe = Recipe.parse(
        {
            "model": str(model_folders["llama"]),
            "task": {
                "name": "files",
                "inputs": str(file),
                "context_from_logs": True,
                "student_system": "Shop.",
            },
            "dtype": "float32",
            "teacher": {"max_new_tokens": 4},
            "training": {"max_steps": 2, "batch_size": 2},
            "keep": {"source": "none"},
        }
    )
    return cell.run(recipe, folder / "run", display=QUIET)


def test_all_methods_answer_and_remember_what_they_said(finished: Path) -> None:
    tried = run("try", finished, typed="lamp 1?\nand now?\n/new\nlamp 2?\n/quit\n")
    assert tried.exit_code == 0, tried.output
    for name in ("zero-shot", "in-context", "distillation"):
        assert tried.output.count(f"{name}:") == 3
    assert "a new conversation" in tried.output
    assert run("try", finished, typed="").exit_code == 0  # the end of the input


def test_what_is_typed_stands_where_it_stood_in_training(finished: Path) -> None:
    trial = Trial.of(finished)
    told: dict[str, list[str]] = {}
    trial.ask("lamp 1?", lambda name, text: told.setdefault(name, []).append(text))
    decode = trial.student.model.tokenizer.decode
    for name, before in (
        ("zero_shot", ""),
        (
            "in_context",
            "<|start|>system\nYou are the assistant of a shop that sells lamps. Be kind.",
        ),
        ("distillation", "<|start|>system\nShop."),
    ):
        prompt = decode(trial._prompt(name, trial.said[name][:1], "lamp 1?"))  # type: ignore[arg-type, index]
        end = "<|end|>\n" if before else ""
        assert prompt == f"{before}{end}<|start|>user\nlamp 1?<|end|>\n<|start|>assistant\n"
    answered = trial.student.answer(["lamp 1?"])
    assert told["distillation"][-1] == answered[0]
    assert [one.role for one in trial.said["zero_shot"]] == ["user", "assistant"]


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    tried = run("try", tmp_path / "none")
    assert tried.exit_code == 2
    assert "no finished run" in tried.output or "no such" in tried.output
