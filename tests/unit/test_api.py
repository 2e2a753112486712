"""What a person calls from Python. The pipeline is replaced where only what it is given matters."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.finished import method_result, results, run_results, score, write_run, write_study
from tests.small import write_gsm8k

import instil
import instil.pipeline
from instil.errors import (
    ConfigError,
    DataFileError,
    DataFormatError,
    FieldError,
    GateError,
)
from instil.losses import CrossEntropy
from instil.models.tuning import LoRA
from instil.recipe.grid import Plan
from instil.recipe.recipe import Recipe
from instil.recipe.sections import Evaluation, Prompt
from instil.results.schema import CELLS, FAILURE, INDEX, RESULTS, Failure, Results
from instil.tasks import Files
from instil.tasks.files import ROWS
from instil.tasks.rows import Row

SHOTS = instil.FewShot([{"input": "one", "output": "1"}])
GRID: dict[str, list[Any]] = {"method": ["zero_shot", "distillation"], "seed": [0, 1]}


def replace(monkeypatch: pytest.MonkeyPatch, module: str, **names: object) -> None:
    """Puts a module of these names in the place of one of the pipeline."""
    made = SimpleNamespace(**names)
    monkeypatch.setitem(sys.modules, f"instil.pipeline.{module}", made)
    monkeypatch.setattr(instil.pipeline, module, made, raising=False)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Takes the place of the cell that `distill` runs: remembers what it was given."""
    seen = SimpleNamespace()

    def run(recipe: Recipe, output: Path, **more: Any) -> Path:
        seen.recipe, seen.output = recipe, output
        vars(seen).update(more)
        return write_run(output, run_results())

    replace(monkeypatch, "cell", run=run)
    return seen


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, Path]]:
    """The plans that `run` hands to the pipeline, which is replaced, with their folders."""
    seen: list[tuple[Plan, Path]] = []

    def run(plan: Plan, output: Path, *, display: object) -> None:
        seen.append((plan, output))
        cells = [results(method_result(c.recipe.method, score(5)), name=c.name) for c in plan.cells]
        write_study(output, cells, varied=plan.varied)

    replace(monkeypatch, "study", run=run)
    return seen


def distilled(tmp_path: Path, **more: Any) -> instil.Run:
    settings: dict[str, Any] = {"context": SHOTS, "inputs": ["two", "three"]}
    return instil.distill("tiny", output=tmp_path / "run", **(settings | more))


def test_distill_gives_its_rows_and_context_to_one_cell(
    tmp_path: Path, cell: SimpleNamespace
) -> None:
    run = distilled(tmp_path, eval=[{"input": "six", "output": "6"}], seed=3, allow_overlap=True)
    assert (run.path, cell.output, cell.overwrite) == (tmp_path / "run", tmp_path / "run", False)
    assert cell.recipe == Recipe.parse(
        {
            "model": "tiny",
            "task": {"name": "files", "allow_overlap": True},
            "training": {"until": "plateau"},
            "evaluation": {"baselines": ["zero_shot", "in_context"]},
            "seed": 3,
        }
    )
    assert cell.given.context == instil.Context.of(SHOTS)
    assert cell.given.inputs == [Row("two"), Row("three")]
    assert cell.given.held_out == {ROWS: [Row("six", "6")]}


def test_distill_may_judge_on_several_sets(tmp_path: Path, cell: SimpleNamespace) -> None:
    rows = [{"input": "six", "output": "6"}]
    distilled(tmp_path, eval={"near": rows, "far": [Row("ten", "10")]})
    assert cell.given.held_out == {"near": [Row("six", "6")], "far": [Row("ten", "10")]}
    for wrong, error in (({}, DataFileError), ({"far": ["ten"]}, FieldError)):
        with pytest.raises(error, match="eval"):
            distilled(tmp_path, eval=wrong)


def test_distill_takes_sections_as_mappings_or_objects(
    tmp_path: Path, cell: SimpleNamespace
) -> None:
    distilled(
        tmp_path,
        prompt=Prompt(format="plain"),
        objective=CrossEntropy(),
        tuning=LoRA(r=4),
        training={"max_steps": 7},
    )
    assert cell.given.held_out is None
    assert cell.recipe.prompt == Prompt(format="plain")
    assert cell.recipe.objective == CrossEntropy()
    assert cell.recipe.tuning == LoRA(r=4)
    assert cell.recipe.training.max_steps == 7


@pytest.mark.parametrize(
    ("evaluation", "baselines"),
    [
        (None, ("zero_shot", "in_context")),
        ({"batch_size": 8}, ("zero_shot", "in_context")),
        (Evaluation(batch_size=8), ("zero_shot", "in_context")),
        ({"baselines": ["zero_shot"]}, ("zero_shot",)),
        (Evaluation(baselines=()), ()),
    ],
)
def test_distill_has_both_baselines_unless_it_is_given_others(
    tmp_path: Path, cell: SimpleNamespace, evaluation: Any, baselines: tuple[str, ...]
) -> None:
    distilled(tmp_path, evaluation=evaluation)
    assert cell.recipe.evaluation.baselines == baselines


def test_gold_completions_need_outputs(tmp_path: Path, cell: SimpleNamespace) -> None:
    with pytest.raises(FieldError, match="inputs, row 1: there is no field 'output'"):
        distilled(tmp_path, teacher={"completions": "gold"})


@pytest.mark.parametrize("call", [instil.distill, instil.run, instil.validate])
def test_an_unknown_argument_is_a_type_error(call: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'trainning'"):
        call("tiny", context=SHOTS, inputs=["one"], trainning={}) if call is instil.distill else (
            call("sentiment-smollm2", trainning={})
        )


def test_an_unknown_key_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.epoch: unknown key; did you mean 'epochs'\?"):
        distilled(tmp_path, training={"epoch": 3})
    assert not (tmp_path / "run").exists()


def test_run_gives_a_study_of_the_changed_recipe(
    tmp_path: Path, planned: list[tuple[Plan, Path]]
) -> None:
    study = instil.run(
        "sentiment-smollm2",
        grid=GRID,
        training={"max_steps": 30},
        task={"prefix": "Judge."},
        set=["evaluation.rows=20"],
        output=tmp_path / "study",
    )
    ((plan, output),) = planned
    assert (study.path, output) == (tmp_path / "study", tmp_path / "study")
    assert [cell.results.method for cell in study.cells] == [
        "zero_shot",
        "zero_shot",
        "distillation",
        "distillation",
    ]
    last = plan.cells[-1].recipe
    assert (last.training.max_steps, last.evaluation.rows, last.seed) == (30, 20, 1)
    assert last.task.model_dump()["prefix"] == "Judge."
    assert last.task.name == "sentiment"
    assert yaml.safe_load(yaml.safe_dump(plan.settings)) == plan.settings


def test_a_recipe_without_a_grid_is_a_study_of_one_cell(
    tmp_path: Path, planned: list[tuple[Plan, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = instil.run({"model": "tiny", "task": Files()}, method="zero_shot")
    assert [cell.results.method for cell in study.cells] == ["zero_shot"]
    assert study.path.parent == Path("runs")
    study = instil.run("gsm8k-llama-3.2-3b", grid={}, task={"folder": write_gsm8k(tmp_path)})
    assert study.path == Path("runs/gsm8k-llama-3.2-3b")


def test_validate_names_every_problem(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    rows = jsonl("rows.jsonl", [{"input": f"{n}", "output": "x"} for n in range(9)])
    task = {"name": "files", "inputs": rows, "demos": rows, "eval": rows}
    recipe = {"model": "tiny", "task": task}
    with pytest.raises(ConfigError, match=r"1 problem.*9 of 9 evaluation rows are also"):
        instil.validate(recipe, grid={"seed": [0, 1]})
    instil.validate(recipe, task={"allow_overlap": True}, seed=1)
    with pytest.raises(ConfigError, match="batch_size"):
        instil.validate(recipe, training={"batch_size": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_load_opens_a_run(tmp_path: Path) -> None:
    run = instil.load(str(write_run(tmp_path / "run", run_results())))
    assert isinstance(run, instil.Run)
    assert run.results == run_results()
    assert [said.predicted for said in run.predictions] == ["1"]
    assert run.adapter == tmp_path / "run" / "adapter"
    assert run.report() == tmp_path / "run" / "report.html"
    assert run == instil.Run(tmp_path / "run")
    run.check(min_recovery=0.9)
    with pytest.raises(
        GateError, match=r"recovery 0\.857, .*; allowed: a recovery of at least 0\.9"
    ):
        run.check({"recovery_bound": "estimate"}, min_recovery=0.9)


def test_recovery_that_is_undefined_is_refused(tmp_path: Path) -> None:
    student = method_result("distillation", score(None, kl=0.1))
    run = instil.Run(write_run(tmp_path / "run", results(student)))
    with pytest.raises(GateError, match="recovery is undefined"):
        run.check(min_recovery=0.1)


def test_a_run_without_predictions_says_so(tmp_path: Path) -> None:
    run = instil.Run(write_run(tmp_path / "run", run_results()))
    (run.path / "predictions.jsonl").unlink()
    with pytest.raises(DataFileError, match=r"predictions\.jsonl: no such file"):
        _ = run.predictions


@pytest.fixture
def study_folder(tmp_path: Path) -> Path:
    """Two settings with two seeds each, the last cell failed, and one that has not run."""

    def cell(r: int, seed: int, right: int) -> Results:
        student = method_result("distillation", score(right, kl=1 / right))
        varied = {"tuning.r": r, "seed": seed}
        return results(student, seed=seed, name=f"r={r},seed={seed}", varied=varied)

    cells = [cell(2, 0, 5), cell(2, 1, 7), cell(4, 0, 9), cell(4, 1, 8), cell(8, 0, 1)]
    folder = write_study(tmp_path / "study", cells, varied=["tuning.r", "seed"])
    for name in ("r=4,seed=1", "r=8,seed=0"):
        (folder / CELLS / name / RESULTS).unlink()
    failure = Failure(
        name="r=4,seed=1", varied={}, error="killed", message="out of memory\nmore", seconds=1.0
    )
    failure.write(folder / CELLS / failure.name / FAILURE)
    return folder


def test_load_opens_a_study(study_folder: Path) -> None:
    study = instil.load(study_folder)
    assert isinstance(study, instil.Study)
    assert [run.path.name for run in study.cells] == ["r=2,seed=0", "r=2,seed=1", "r=4,seed=0"]
    assert [failure.name for failure in study.failures] == ["r=4,seed=1"]
    assert [(row["tuning.r"], row["seeds"], row["accuracy"]) for row in study.table()] == [
        (2, 2, pytest.approx(0.6)),
        (4, 1, 0.9),
    ]
    assert study.best("distillation").path.name == "r=4,seed=0"
    with pytest.raises(ConfigError, match="no finished cell has the method 'in_context'"):
        study.best("in_context")
    assert isinstance(instil.load(study_folder / CELLS / "r=2,seed=0"), instil.Run)


def test_load_says_what_is_there_instead(tmp_path: Path, study_folder: Path) -> None:
    (tmp_path / "half.partial").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path / "gone", "no such folder"),
        (tmp_path / "file", "a file"),
        (tmp_path / "empty", "a folder without study.json or results.json"),
        (tmp_path / "half", "an unfinished run"),
        (study_folder / CELLS / "r=4,seed=1", "a cell that failed with killed: out of memory"),
    ):
        with pytest.raises(DataFileError, match=words):
            instil.load(path)


@pytest.mark.parametrize("name", [RESULTS, INDEX])
def test_load_refuses_files_of_another_version(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(DataFormatError, match=f"{name} of this version"):
        instil.load(tmp_path)
