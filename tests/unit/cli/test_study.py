"""`instil run`, `instil validate` and `instil report` as a person types them; the report's functions are replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from tests.finished import run_results, write_run, write_study
from typer.testing import CliRunner

import instil.report
from instil import cli
from instil.report import Format

Command = Callable[..., tuple[int, str]]
FORMATS = get_args(Format)


@pytest.fixture
def command() -> Command:
    """A command in this process: its exit status and all that it printed."""

    def go(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, [str(one) for one in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return go


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the report's functions were asked to draw, and where."""
    seen: list[tuple[Any, ...]] = []

    def single(folder: Path) -> Path:
        seen.append((folder,))
        return folder / "report.html"

    def several(paths: list[Path], folder: Path, formats: list[str]) -> list[Path]:
        seen.append((paths, folder, tuple(formats)))
        return [folder / "report.html", folder / "figures" / "scores.svg"]

    monkeypatch.setattr(instil.report, "write_report", single, raising=False)
    monkeypatch.setattr(instil.report, "read_study", lambda paths: paths)
    monkeypatch.setattr(instil.report, "write_study", several)
    return seen


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", run_results())


def test_a_single_run_has_its_own_report(
    run: Path, command: Command, drawn: list[tuple[Any, ...]]
) -> None:
    assert command("report", run) == (0, f"{run / 'report.html'}\n")
    assert drawn == [(run,)]


def test_other_formats_or_another_folder_make_the_report_of_a_study(
    run: Path, tmp_path: Path, command: Command, drawn: list[tuple[Any, ...]]
) -> None:
    assert command("report", run, "--format", "md, csv")[0] == 0
    assert command("report", run, "--output", tmp_path / "there")[0] == 0
    assert drawn == [([run], run, ("md", "csv")), ([run], tmp_path / "there", FORMATS)]


def test_studies_and_runs_are_drawn_together(
    run: Path, tmp_path: Path, command: Command, drawn: list[tuple[Any, ...]]
) -> None:
    study = write_study(tmp_path / "study", [], varied=[])
    status, output = command("report", study, run)
    assert (status, output) == (0, f"{study / 'report.html'}\n")  # figures are not listed
    assert drawn == [([study, run], study, FORMATS)]
    status, output = command("report", run, study)
    assert (status, "already holds the report of a single run" in output) == (2, True)


def test_an_unknown_format_is_refused(run: Path, command: Command) -> None:
    status, output = command("report", run, "--format", "html,docx")
    assert (status, "--format: unknown format 'docx'; allowed: html, md" in output) == (2, True)


def test_the_help_names_every_format() -> None:
    group: Any = typer.main.get_command(cli.app)
    option = next(p for p in group.commands["report"].params if "--format" in p.opts)
    assert f"commas: {', '.join(FORMATS)}." in option.help


def test_a_study_has_the_name_of_its_recipe(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"model": "tiny-1.5b", "task": {"name": "files"}, "grid": {"method": ["zero_shot"]}}
    (tmp_path / "tiny-1.5b.yaml").write_text(yaml.safe_dump(recipe))
    status, output = command("run", "tiny-1.5b.yaml", "--dry-run")
    assert status == 0
    assert "1 cell in runs/tiny-1.5b" in " ".join(output.split())


def test_validate_counts_the_cells_or_names_the_problems(
    tmp_path: Path, command: Command, jsonl: Callable[..., Path]
) -> None:
    rows = [{"input": f"{n}", "output": "x"} for n in range(9)]
    task = {
        "name": "files",
        "inputs": str(jsonl("rows.jsonl", rows)),
        "demos": str(jsonl("demos.jsonl", [{"input": "a", "output": "b"}])),
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"model": "tiny", "task": task}))
    seeds = ("--set", "grid.seed=[0, 1]")
    status, output = command("validate", path, *seeds)
    assert (status, output) == (0, f"{path}: 2 cells, no problem found\n")
    status, output = command("validate", path, *seeds, "--set", "task.k=2")
    assert (status, "the recipe has 1 problem: k = 2" in output) == (2, True)
