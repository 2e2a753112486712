"""Studies as they run: cells in processes of their own, on tiny models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from filelock import FileLock
from tests.finished import method_result, results, score
from tests.small import reused
from typer.testing import CliRunner

from instil.cli import app
from instil.pipeline import study
from instil.recipe.grid import PlannedCell
from instil.recipe.recipe import Recipe
from instil.report import read_study
from instil.report.analysis import analyse
from instil.results.schema import CELLS, RESULTS, Failure, Prediction, Results, StudyIndex
from instil.system.files import read_lines

LABELS = {"good": ["Yes"], "bad": ["No"]}


@pytest.fixture
def recipe(
    tmp_path: Path,
    jsonl: Callable[[str, list[dict[str, Any]]], Path],
    model_folders: dict[str, Path],
) -> dict[str, Any]:
    """The settings of a small study."""

    def rows(name: str, number: int) -> str:
        labels = list(LABELS)
        told = [{"text": f"{name} {n}", "label": labels[n % 2]} for n in range(number)]
        return str(jsonl(f"{name}.jsonl", told))

    return {
        "title": "Small",
        "model": str(model_folders["llama"]),
        "task": {
            "name": "classification",
            "pattern": "{text}\nGood?",
            "verbalizer": LABELS,
            "train": rows("train", 30),
            "in_domain": {"here": rows("here", 8)},
        },
        "dtype": "float32",
        "demonstrations": {"k": 2},
        "training": {"rows": 8, "max_steps": 2, "batch_size": 4},
        "grid": {"method": ["zero_shot", "in_context", "distillation"]},
    }


@pytest.fixture
def instil(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """`instil run` with the settings as they are now: its exit status and all that it printed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def go(*flags: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*command(tmp_path, recipe), *flags])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return go


def command(tmp_path: Path, recipe: dict[str, Any]) -> list[str]:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return ["run", str(path), "--output", str(tmp_path / "study"), "--quiet"]


def cells(tmp_path: Path) -> dict[str, float]:
    """Name of each whole cell -> when it was written."""
    whole = [p.parent for p in tmp_path.glob("study/cells/*/results.json")]
    return {p.name: p.stat().st_mtime for p in whole if p.suffix != ".partial"}


def test_a_study_is_run_once_and_goes_on_where_it_is(
    tmp_path: Path, recipe: dict[str, Any], instil: Callable[..., tuple[int, str]]
) -> None:
    status, said = instil()
    assert (status, "3 of 3 cells done" in said) == (0, True)
    study = tmp_path / "study"
    index = StudyIndex.read(study / "study.json")
    first = cells(tmp_path)
    assert sorted(index.cells) == sorted(first)
    for name in ("report.html", "tables.md", "tables.tex", "cells.csv", "recipe.yaml"):
        assert (study / name).stat().st_size > 0
    taught = [Results.read(study / "cells" / name / "results.json") for name in index.cells]
    assert [cell.method for cell in taught] == ["zero_shot", "in_context", "distillation"]
    assert reused(taught[2]) == []  # its training rows are nobody else's
    assert (study / "cells" / index.cells[2] / "adapter/adapter_model.safetensors").exists()

    recipe["grid"]["seed"] = [0, 1]
    status, said = instil("--dry-run")
    assert said.count("done") == 0 or "to do" in said
    assert cells(tmp_path) == first
    recipe["grid"] = {"method": ["zero_shot", "in_context", "distillation", "pattern_fine_tuning"]}
    assert instil()[0] == 0
    assert {name: cells(tmp_path)[name] for name in first} == first
    assert len(cells(tmp_path)) == 4


def test_a_cell_of_a_model_that_moved_is_to_do(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, commits = "owner/name", ("1" * 40, "2" * 40)
    folder = tmp_path / CELLS / "cell"
    folder.mkdir(parents=True)
    results(method_result("zero_shot", score(1)), model_source=f"{name}@{commits[0]}").write(
        folder / RESULTS
    )
    cell = PlannedCell("cell", {}, Recipe.parse({"model": name}))
    found: list[str | None] = [None, *commits]
    states = []
    monkeypatch.setattr("instil.models.source._cached_commit", lambda *_: found[len(states)])
    for _ in found:
        states.append(study.state(tmp_path, cell))
    assert states == ["done", "done", "to do"]


def test_the_first_cell_s_dtype_is_every_cell_s(
    tmp_path: Path, recipe: dict[str, Any], instil: Callable[..., tuple[int, str]]
) -> None:
    recipe |= {"dtype": "auto", "grid": {"method": ["zero_shot"]}}
    assert instil()[0] == 0
    (path,) = tmp_path.glob("study/cells/*/results.json")
    measured = Results.read(path).dtype
    other = {"float32": "bfloat16", "bfloat16": "float32"}[measured]
    path.write_text(path.read_text().replace(measured, other))
    recipe["grid"]["seed"] = [0, 1]
    assert instil()[0] == 0
    told = [Results.read(p) for p in tmp_path.glob("study/cells/*/results.json")]
    assert [cell.dtype for cell in told] == [other, other]


def test_a_failed_cell_is_recorded_tried_again_and_the_rest_goes_on(
    tmp_path: Path, recipe: dict[str, Any], instil: Callable[..., tuple[int, str]]
) -> None:
    recipe["grid"] = {"method": ["zero_shot", "pattern_fine_tuning"], "tuning.name": ["bitfit"]}
    status, said = instil()
    assert (status, "1 of 2 cells done" in said) == (1, True)
    (path,) = tmp_path.glob("study/cells/*/failure.json")
    failure = Failure.read(path)
    assert failure.error == "TuningError"
    assert "lora" in failure.message
    assert failure.varied["method"] == "pattern_fine_tuning"
    assert failure.message in json.loads(path.read_text())["message"]
    before = path.stat().st_mtime
    assert instil()[0] == 1
    assert path.stat().st_mtime > before


@pytest.mark.slow
def test_a_killed_study_goes_on(tmp_path: Path, recipe: dict[str, Any]) -> None:
    arguments = [sys.executable, "-m", "instil", *command(tmp_path, recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not cells(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = cells(tmp_path)
    assert 1 <= len(done) < 3
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert "3 of 3 cells done" in ended.stdout
    assert {name: cells(tmp_path)[name] for name in done} == done
    assert not list(tmp_path.glob("study/cells/*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("told", ["all", "cell"])  # the study may miss what its cell was told
def test_ctrl_c_ends_the_study_and_its_cell_and_it_goes_on(
    tmp_path: Path, recipe: dict[str, Any], told: str
) -> None:
    recipe["training"] |= {"max_steps": 100_000}
    recipe["grid"] = {"method": ["zero_shot", "pattern_fine_tuning"]}
    arguments = [sys.executable, "-m", "instil", *command(tmp_path, recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        arguments, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("study/cells/pattern*.partial/scratch")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
        if told == "all":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            (cell,) = (p for p in started if p.ppid() != process.pid)  # the server's child
            cell.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "repeat the same command to resume" in said
    assert "Traceback" not in said
    assert not psutil.wait_procs(started, timeout=30)[1]
    done = cells(tmp_path)
    assert len(done) == 1
    recipe["training"] |= {"max_steps": 2}
    again = subprocess.run(
        [sys.executable, "-m", "instil", *command(tmp_path, recipe)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2 of 2 cells done" in again.stdout
    assert cells(tmp_path).items() >= done.items()


@pytest.mark.slow
def test_a_cell_that_is_killed_does_not_take_the_study_along(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    recipe["training"] |= {"max_steps": 100_000}
    recipe["grid"] = {"method": ["pattern_fine_tuning", "zero_shot"]}
    arguments = [sys.executable, "-m", "instil", *command(tmp_path, recipe)]
    process = subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("study/cells/*.partial/scratch")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for child in psutil.Process(process.pid).children(recursive=True):
            # the server that forks is our process's child, and the cell is the server's
            if child.status() != psutil.STATUS_ZOMBIE and child.ppid() != process.pid:
                child.kill()
        assert process.wait(timeout=120) == 1
    finally:
        process.kill()
        process.wait()
    (path,) = tmp_path.glob("study/cells/*/failure.json")
    assert Failure.read(path).error == "killed"
    assert len(cells(tmp_path)) == 1


def test_what_is_in_the_way_is_refused(
    tmp_path: Path, instil: Callable[..., tuple[int, str]]
) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.txt").write_text("mine")
    status, said = instil()
    assert (status, "is not a study" in said) == (2, True)
    (tmp_path / "study" / "mine.txt").unlink()
    with FileLock(tmp_path / "study" / ".lock"):
        status, said = instil()
    assert (status, "another process works on" in said) == (2, True)


@pytest.fixture
def own_rows(
    recipe: dict[str, Any], jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> dict[str, Any]:
    """The same recipe with own rows; it shares the object that `instil` runs."""
    solved = [{"input": f"{n}", "output": f"{n + 1}"} for n in range(8)]
    for name in ("demonstrations", "grid"):
        del recipe[name]
    recipe |= {
        "task": {
            "name": "files",
            "demos": str(jsonl("demos.jsonl", solved[:2])),
            "inputs": str(jsonl("inputs.jsonl", solved[2:6])),
            "eval": str(jsonl("eval.jsonl", solved[6:])),
        },
        "prompt": {"format": "plain"},
        "training": {"max_steps": 1},
        "evaluation": {"baselines": ["zero_shot", "in_context"]},
    }
    return recipe


def test_a_study_of_own_rows_tells_of_its_students_and_their_baselines(
    tmp_path: Path, own_rows: dict[str, Any], instil: Callable[..., tuple[int, str]]
) -> None:
    own_rows["grid"] = {"seed": [0, 1], "training.learning_rate": [0.001, 0.01]}
    status, said = instil()
    assert (status, "4 of 4 cells done" in said) == (0, True)
    assert (tmp_path / "study/report.html").exists()
    study = read_study([tmp_path / "study"])
    zero_shot, in_context, slow, fast = analyse(study).groups
    assert [group.method for group in (zero_shot, in_context)] == ["zero_shot", "in_context"]
    assert [group.settings["training.learning_rate"] for group in (slow, fast)] == [0.001, 0.01]
    for group in (slow, fast):
        assert [cell.seed for cell in group.cells] == [0, 1]
    ran = Results.read(next(tmp_path.glob("study/cells/seed=1*=0.01-*/results.json")))
    own = fast.cells[1]
    moved = ran.methods[0].drift
    assert moved is not None
    assert (own.drift, own.phases) == (moved.kl_to_base, ran.phases)
    assert own.scores == ran.methods[0].scores
    assert 0 < ran.shipped_bytes < 1e6
    assert ran.varied == {"seed": 1, "training.learning_rate": 0.01}
    assert [line.text for line in study.predictions(own)] == [
        line.text
        for line in read_lines(Prediction, own.folder / "predictions.jsonl")
        if line.method == "distillation"
    ]
    assert "Drift" in (tmp_path / "study/tables.md").read_text()
    one = str(own.folder)
    result = CliRunner().invoke(app, ["report", one])
    assert (result.exit_code, result.output.count("report.html")) == (0, 1)
    others = [str(path) for path in sorted(tmp_path.glob("study/cells/*"))]
    result = CliRunner().invoke(app, ["report", *others])
    assert (result.exit_code, "--output" in result.output) == (2, True)
    result = CliRunner().invoke(app, ["report", *others, "--output", str(tmp_path / "all")])
    assert result.exit_code == 0
    joined = analyse(read_study([Path(path) for path in others])).groups
    assert [group.label() for group in joined] == [
        group.label() for group in (zero_shot, in_context, slow, fast)
    ]
    assert (tmp_path / "all/report.html").exists()
    (Path(one) / "predictions.jsonl").write_text("{}\n")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "study")])
    assert (result.exit_code, "predictions.jsonl of this version" in result.output) == (2, True)


def test_runs_without_gold_outputs_are_compared_by_their_fidelity(
    tmp_path: Path,
    own_rows: dict[str, Any],
    jsonl: Callable[[str, list[dict[str, Any]]], Path],
    instil: Callable[..., tuple[int, str]],
) -> None:
    inputs = jsonl("inputs.jsonl", [{"input": f"{n}"} for n in range(10, 30)])
    del own_rows["task"]["eval"]
    own_rows["task"]["inputs"] = str(inputs)
    own_rows["grid"] = {"seed": [0, 1]}
    status, said = instil()
    assert (status, "2 of 2 cells done" in said) == (0, True)
    assert "KL" in (tmp_path / "study/report.html").read_text()
