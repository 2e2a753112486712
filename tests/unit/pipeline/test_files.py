"""Cells of the user's own rows, with baselines beside the student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.small import QUIET
from tests.unit.report.pages import plain

from instil.errors import ContextError, OutputError, OutputExistsError
from instil.methods import MethodName
from instil.pipeline import cell
from instil.pipeline.given import Given
from instil.prompts.context import Context, FewShot, Instruction
from instil.recipe.recipe import Recipe
from instil.results.schema import PREDICTIONS, RESULTS, MethodResult, Prediction, Results
from instil.system.files import read_lines
from instil.tasks.rows import Row
from instil.teacher import inputs

BASELINES: list[MethodName] = ["zero_shot", "in_context"]
Settings = Callable[..., Recipe]


def solved(start: int, end: int) -> list[dict[str, Any]]:
    return [{"input": f"{n}", "output": f"{n + 1}"} for n in range(start, end)]


@pytest.fixture
def recipe(
    model_folders: dict[str, Path], jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> Settings:
    """A small recipe of own rows; sections are given as keywords."""

    def make(*, task: dict[str, Any] | None = None, **sections: Any) -> Recipe:
        files = {
            "name": "files",
            "inputs": jsonl("inputs.jsonl", solved(10, 22)),
            "eval": jsonl("eval.jsonl", solved(30, 36)),
            "demos": jsonl("demos.jsonl", solved(0, 3)),
        }
        return Recipe.parse(
            {
                "model": str(model_folders["llama"]),
                "task": files | (task or {}),
                "prompt": {"format": "plain"},
                "dtype": "float32",
                "teacher": {"max_new_tokens": 4},
                "training": {"max_steps": 2, "batch_size": 4},
                "evaluation": {"baselines": BASELINES} | sections.pop("evaluation", {}),
                **sections,
            }
        )

    return make


def run(recipe: Recipe, folder: Path, **settings: Any) -> Results:
    return Results.read(cell.run(recipe, folder, display=QUIET, **settings) / RESULTS)


def of(results: Results, name: MethodName) -> MethodResult:
    found = results.result(name)
    assert found is not None
    return found


def test_a_run_tells_of_its_student_and_its_baselines(recipe: Settings, tmp_path: Path) -> None:
    results = run(recipe(), tmp_path / "run")
    assert [one.method for one in results.methods] == ["distillation", *BASELINES]
    assert results.task == "files"
    assert {name: facts.rows for name, facts in results.rows.items()} == {
        "training": 12,
        "evaluation rows": 6,
    }
    before, context, student = (of(results, name) for name in (*BASELINES, results.method))
    for one in results.methods:
        (score,) = one.scores
        assert score.accuracy is not None
        assert (score.name, score.rows, score.accuracy.n) == ("evaluation rows", 6, 6)
        assert score.cross_entropy is not None
        assert score.completions == "gold"
        assert one.seconds_per_query is not None
        assert (score.fidelity is None) == (one.method == "in_context")
    assert student.drift is not None
    assert (before.drift, context.drift) == (None, None)
    assert results.tokens_saved == context.prompt_tokens_mean - student.prompt_tokens_mean > 10
    assert results.context is not None
    assert results.context.tokens == pytest.approx(results.tokens_saved)
    assert results.context.description == "3 demonstrations"
    assert results.prompt.pattern == "Q: {input}\nA:"
    lines = read_lines(Prediction, tmp_path / "run" / PREDICTIONS)
    assert [(line.method, line.row) for line in lines] == [
        (one.method, row) for one in results.methods for row in range(6)
    ]
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "adapter",
        "config.yaml",
        "context.json",
        "evaluation.jsonl",
        "context.txt",
        "environment.json",
        "predictions.jsonl",
        "report.html",
        "results.json",
    }
    with pytest.raises(OutputExistsError):
        run(recipe(), tmp_path / "run")


def test_several_sets_are_judged_each_by_its_name(
    recipe: Settings, tmp_path: Path, jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    sets = {
        "near": str(jsonl("near.jsonl", solved(40, 43))),
        "far": str(jsonl("far.jsonl", solved(900, 905))),
    }
    results = run(recipe(task={"eval": sets}), tmp_path / "run")
    for one in results.methods:
        assert [(score.name, score.rows) for score in one.scores] == [("near", 3), ("far", 5)]


def test_without_gold_outputs_the_teacher_s_answers_are_compared(
    recipe: Settings, tmp_path: Path, jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    bare = jsonl("bare.jsonl", [{"input": f"{n}"} for n in range(10, 22)])
    results = run(recipe(task={"inputs": bare, "eval": None}), tmp_path / "run")
    for one in results.methods:
        (score,) = one.scores
        assert (score.accuracy, score.completions) == (None, "teacher")
        assert score.cross_entropy is not None
    assert of(results, "zero_shot").scores[0].fidelity is not None
    assert results.recovery is None
    lines = read_lines(Prediction, tmp_path / "run" / PREDICTIONS)
    assert {(line.expected, line.correct) for line in lines} == {(None, None)}


def test_a_student_is_watched_on_inputs_that_it_does_not_learn(
    recipe: Settings, tmp_path: Path
) -> None:
    watched = {"at_steps": 1, "validation_rows": 4}
    results = run(recipe(evaluation=watched), tmp_path / "run")
    assert results.training is not None
    assert results.rows["training"].rows == results.training.rows == 8
    assert [one.step for one in results.training.checkpoints] == [0, 1, 2]
    assert all(one.accuracy and one.accuracy.n == 4 for one in results.training.checkpoints)


@pytest.mark.parametrize("method", ["zero_shot", "in_context", "pattern_fine_tuning"])
def test_other_methods_work_on_own_rows_too(recipe: Settings, tmp_path: Path, method: str) -> None:
    results = run(recipe(method=method, evaluation={"baselines": []}), tmp_path / "run")
    assert [one.method for one in results.methods] == [method]
    assert (results.training is None) == (method != "pattern_fine_tuning")
    assert (results.context is None) == (method != "in_context")
    assert not (tmp_path / "run" / "scratch").exists()


def test_rows_and_context_may_be_given(recipe: Settings, tmp_path: Path) -> None:
    given = Given(
        Context.of([FewShot(solved(0, 2)), Instruction("Add one.")]),
        [Row(f"{n}", f"{n + 1}") for n in range(10, 14)],
        {"mine": [Row("50", "51")]},
    )
    bare = recipe(task={"inputs": None, "eval": None, "demos": None})
    results = run(bare, tmp_path / "run", given=given)
    assert [score.name for score in results.methods[0].scores] == ["mine"]
    assert results.context is not None
    assert results.context.description == "an instruction and 2 demonstrations"
    assert results.context.sha256 == given.context.digest()


def test_gold_completions_need_outputs(
    recipe: Settings, tmp_path: Path, jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    given = Given(
        Context.of(FewShot(solved(0, 2))), [Row("10"), Row("11", "12")], {"e": [Row("5", "6")]}
    )
    asked = recipe(
        teacher={"completions": "gold"}, task={"inputs": None, "eval": None, "demos": None}
    )
    with pytest.raises(ContextError, match="input 1 has no output"):
        run(asked, tmp_path / "run", given=given)
    assert not list(tmp_path.glob("run*"))


def test_an_interrupted_run_resumes_and_ends_as_an_uninterrupted_one(
    recipe: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instil.pipeline.text import TextSteps

    whole = run(recipe(), tmp_path / "whole")
    usual = TextSteps.judge

    def stop(self: Any, *arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(TextSteps, "judge", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(), tmp_path / "cut")
    assert (tmp_path / "cut.partial" / "scratch").exists()
    monkeypatch.setattr(TextSteps, "judge", usual)
    again = run(recipe(), tmp_path / "cut")
    assert [one.scores for one in again.methods] == [one.scores for one in whole.methods]
    assert again.phases["generate"].tokens == whole.phases["generate"].tokens
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("store", ["file", "file/below", "x" * 300])
def test_a_store_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    recipe: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setattr("instil.pipeline.text.load_models", lambda *args: pytest.fail("loaded"))
    (tmp_path / "file").touch()
    named = recipe(teacher={"store": tmp_path / store})
    with pytest.raises(OutputError, match=r"is a file|cannot be created"):
        run(named, tmp_path / "run")
    with pytest.raises(OutputError, match=r"is a file|cannot be created"):
        cell.teach(named, store=tmp_path, display=QUIET)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl"} == {"file"}


def test_what_is_complete_is_not_done_again(
    recipe: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("instil.report.write_report", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr("instil.training.trainer.train", lambda *a, **k: pytest.fail("trained"))
    assert run(recipe(), tmp_path / "run").method == "distillation"
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "scratch").exists()


def test_a_run_makes_inputs_and_says_which(
    recipe: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        inputs._Prompts, "item", lambda self, made: " ".join(map(str, made.ids[:2]))
    )
    results = run(recipe(training={"make_inputs": 9}), tmp_path / "run")
    training = results.training
    assert training is not None
    assert training.made_inputs is not None
    assert training.made_inputs.rows == training.made_inputs.asked == 9
    assert training.rows == 12 + 9
    lines = (tmp_path / "run" / "made_inputs.jsonl").read_text("utf-8").splitlines()
    assert len({json.loads(line)["input"] for line in lines}) == 9
    report = plain((tmp_path / "run" / "report.html").read_text("utf-8"))
    assert "The teacher wrote 9 inputs" in report


def test_a_run_holds_out_rows_and_tells_when_it_ended(
    recipe: Settings, tmp_path: Path, jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    many = jsonl("many.jsonl", [{"input": f"{n}"} for n in range(100, 130)])
    results = run(
        recipe(task={"inputs": many}, training={"until": "plateau", "max_steps": 25}),
        tmp_path / "run",
    )
    training = results.training
    assert training is not None
    assert (training.rows, training.held_out_rows) == (27, 3)
    assert training.ended in ("plateau", "max_steps")
    assert [one.step for one in training.held_out][:3] == [0, 10, 20]
    assert sum(one.kept for one in training.held_out) == 1
    report = plain((tmp_path / "run" / "report.html").read_text("utf-8"))
    assert "Training ended when the loss on 3 held-out rows" in report
    assert "held-out rows" in report


def test_few_rows_are_all_learnt_in_a_fixed_number_of_steps(
    recipe: Settings, tmp_path: Path
) -> None:
    results = run(recipe(training={"until": "plateau", "max_steps": 3}), tmp_path / "run")
    training = results.training
    assert training is not None
    assert (training.rows, training.held_out_rows, training.steps) == (12, 0, 3)
    assert (training.held_out, training.ended) == ([], None)
