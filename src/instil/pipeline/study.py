"""Runs a plan: each cell in a process of its own, whole or not at all, and never twice.

A process of its own makes a cell's peak memory its own, and lets the study outlive a cell that is killed. A study's
folder says how far it got: a cell is done when its folder has its name, failed when that folder holds `failure.json`.
So a study that was interrupted in any way goes on when it is run again.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from instil.errors import OutputError, OutputExistsError
from instil.pipeline.given import Given
from instil.pipeline.worker import KILLED, in_process, run_cell
from instil.recipe.grid import Plan, PlannedCell
from instil.recipe.recipe import Recipe
from instil.results.cell import CELL, FAILURE, Failure
from instil.results.schema import RESULTS
from instil.results.study_index import CELLS, INDEX, StudyIndex
from instil.system import processes
from instil.system.files import written_whole
from instil.system.progress import Display, StudyDisplay
from instil.tasks.free_text import FreeText

TARGETS, RECIPE, LOCK = "targets", "recipe.yaml", ".lock"
DONE = (CELL, RESULTS)

State = Literal["done", "failed", "to do"]


@dataclass(frozen=True)
class Progressed:
    """How far a study is.

    Attributes:
        done: Cells that are whole, by name.
        failed: Cells that came to nothing, by name.
    """

    done: list[str]
    failed: list[str]


def named_as_before(plan: Plan, output: Path) -> Plan:
    """The plan with the names that its cells have in this folder already: a grid that grows tells more in a name."""
    there = {p.name.rpartition("-")[2]: p.name for p in (output / CELLS).glob("*") if p.is_dir()}
    cells = [replace(c, name=there.get(c.name.rpartition("-")[2], c.name)) for c in plan.cells]
    return replace(plan, cells=cells)


def state(output: Path, cell: PlannedCell) -> State:
    """How far one cell is."""
    folder = output / CELLS / cell.name
    if any((folder / name).exists() for name in DONE):
        return "done"
    return "failed" if (folder / FAILURE).exists() else "to do"


def teaching_key(recipe: Recipe) -> str | None:
    """Equal for two cells of which one reads predictions of the teacher that the other has stored; None without one."""
    if recipe.task is None or recipe.method not in ("in_context", "distillation"):
        return None
    read = {"task", "demonstrations", "prompt", "dtype", "seed", "evaluation"}
    written = isinstance(recipe.task, FreeText)
    if written:  # answers are written anew, targets are stored
        if recipe.method != "distillation" or not recipe.objective.needs_targets:
            return None
        read |= {"teacher"}
    parts = recipe.model_dump(mode="json", include=read)
    if written:
        parts["targets"] = [recipe.objective.temperature, recipe.objective.top_k_needed]
    rows = recipe.training.rows  # what is left of the training set is the pool
    return json.dumps([parts, rows, recipe.teacher.model or recipe.model], sort_keys=True)


def run(plan: Plan, output: Path, *, display: Display) -> Progressed:
    """Runs what is not done yet.

    Args:
        plan: The cells.
        output: Folder of the study; cells that it has are not run again.
        display: Shows progress.

    Raises:
        OutputExistsError: there is something else at `output`.
        OutputError: another process works on this study.
        KeyboardInterrupt: Ctrl-C; the same call goes on from there.
    """
    if processes.count() > 1:
        _run_together(plan, output, display)
    else:
        _run_alone(plan, output, display)
    states = {cell.name: state(output, cell) for cell in named_as_before(plan, output).cells}
    return Progressed(
        done=[name for name, how in states.items() if how == "done"],
        failed=[name for name, how in states.items() if how == "failed"],
    )


def _run_alone(plan: Plan, output: Path, display: Display) -> None:
    with _begin(plan, output):
        plan = named_as_before(plan, output)
        _write_index(plan, output)
        left = [cell for cell in plan.cells if state(output, cell) != "done"]
        with StudyDisplay(display, len(plan.cells), len(plan.cells) - len(left)) as shown:
            for cell in left:
                _run_apart(cell, _settled(cell.recipe, plan, output), output, shown)


def _run_together(plan: Plan, output: Path, display: Display) -> None:
    """Runs one cell after another, each in all processes of a launch; an error ends them all."""

    def begin() -> tuple[Plan, list[PlannedCell]]:
        held.enter_context(_begin(plan, output))
        known = named_as_before(plan, output)
        _write_index(known, output)
        return known, [cell for cell in known.cells if state(output, cell) != "done"]

    with ExitStack() as held:
        plan, left = processes.main_does(begin)
        for number, cell in enumerate(left, start=1):
            display.note(f"cell {number} of {len(left)}: {cell.name}")
            _run_in_all(cell, plan, output, display)


def _run_in_all(cell: PlannedCell, plan: Plan, output: Path, display: Display) -> None:
    """Runs a cell in the processes of a launch."""
    folder = output / CELLS / cell.name
    work = folder.with_name(cell.name + ".partial")

    def begin() -> dict[str, Any]:
        _clear(cell, folder, work)
        if cell.recipe.task is not None:
            work.mkdir(exist_ok=True)
        return _settled(cell.recipe, plan, output)

    recipe = Recipe.parse(processes.main_does(begin))
    from instil.models.load import quiet_libraries

    quiet_libraries()
    if recipe.task is None:
        from instil.pipeline import experiment

        experiment.run(recipe, Given.read(recipe), output=folder, display=display)
        return
    varied, store = dict(cell.varied), output / TARGETS
    run_cell(recipe, work, name=cell.name, varied=varied, store=store, display=display)
    processes.main_does(lambda: work.rename(folder))


def _begin(plan: Plan, output: Path) -> AbstractContextManager[object]:
    """Makes the study's folder, and takes it for this process as long as what it gives is held."""
    known = {INDEX, CELLS, LOCK}
    there = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    if output.exists() and there and not known & there:
        raise OutputExistsError(
            f"{output} exists and is no study", mend="name another folder, or remove it"
        )
    try:
        (output / CELLS).mkdir(parents=True, exist_ok=True)
        return FileLock(output / LOCK).acquire(blocking=False)
    except Timeout:
        raise OutputError(
            f"another process works on {output}", mend="wait for it, or name another folder"
        ) from None
    except OSError as error:
        raise OutputError(
            f"{output} cannot be made",
            got=error.strerror or str(error),
            mend="name a folder that you may write to",
        ) from None


def _write_index(plan: Plan, output: Path) -> None:
    index = StudyIndex(
        title=plan.title,
        description=plan.description,
        varied=plan.varied,
        cells=[cell.name for cell in plan.cells],
    )
    index.write(output / INDEX)
    with written_whole(output / RECIPE) as work:
        text = yaml.safe_dump(plan.settings, sort_keys=False, allow_unicode=True)
        work.write_text(text, encoding="utf-8")


def _settled(recipe: Recipe, plan: Plan, output: Path) -> dict[str, Any]:
    """A cell's settings, with the dtype that the first cell has measured: a busy machine may measure another."""
    settings = recipe.model_dump(mode="json")
    if recipe.dtype == "auto":
        folders = [output / CELLS / c.name for c in plan.cells if c.recipe.dtype == "auto"]
        told = (folder / name for folder in folders for name in DONE)
        measured = (json.loads(p.read_text(encoding="utf-8"))["dtype"] for p in told if p.exists())
        settings["dtype"] = next(measured, "auto")
    return settings


def _run_apart(
    cell: PlannedCell, settings: dict[str, Any], output: Path, shown: StudyDisplay
) -> None:
    folder = output / CELLS / cell.name
    work = folder.with_name(cell.name + ".partial")
    _clear(cell, folder, work)
    start = time.monotonic()
    shown.begin(cell.name)
    failure = in_process(cell, settings, work, output / TARGETS, shown)
    if failure is None:
        work.rename(folder)
    else:
        kind, message = failure
        if kind != KILLED:
            shutil.rmtree(work, ignore_errors=True)
        told = Failure(
            name=cell.name,
            varied=cell.varied,
            error=kind,
            message=message,
            seconds=time.monotonic() - start,
        )
        folder.mkdir()
        told.write(folder / FAILURE)
        shown.warn(f"{cell.name} failed: {kind}: {message.splitlines()[0]}")
    shown.end()


def _clear(cell: PlannedCell, folder: Path, work: Path) -> None:
    """Removes a failure, and what a killed process left, but for long training.

    That goes on where it was interrupted; the settings that it had are in the cell's name.
    """
    goes_on = isinstance(cell.recipe.task, FreeText | None)
    for path in (folder,) if goes_on else (folder, work):
        if path.exists():
            shutil.rmtree(path)
