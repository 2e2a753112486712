"""Runs all cells of a study. Finished cells are not run again.

Each cell runs in its own process. So its peak memory can be measured, and the study continues if
a cell is killed. The folder records the progress: a finished cell has a folder with
`results.json`, a failed cell has a folder with `failure.json`. So an interrupted study resumes
when it is run again.
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

from instil.errors import DiskFullError, InstilError, OutputError, OutputExistsError
from instil.models.source import moved, on_hub
from instil.pipeline.folder import TARGETS, resolved
from instil.recipe.canonical import unread_warning
from instil.recipe.grid import Plan, PlannedCell
from instil.recipe.recipe import Recipe
from instil.results.schema import CELLS, FAILURE, INDEX, RESULTS, Failure, Results, StudyIndex
from instil.system import processes
from instil.system.files import written_whole
from instil.system.locks import hold
from instil.system.progress import Display, StudyDisplay

RECIPE, LOCK = "recipe.yaml", ".lock"

State = Literal["done", "failed", "to do"]


@dataclass(frozen=True)
class Progressed:
    """The progress of a study.

    Attributes:
        done: Names of the finished cells.
        failed: Names of the failed cells.
    """

    done: list[str]
    failed: list[str]


def named_as_before(plan: Plan, output: Path) -> Plan:
    """Returns the plan with the names that its cells already have in this folder.

    The name of a cell lists the varied keys, so it changes if the grid varies more keys. The
    digest at its end stays the same.
    """
    known = {p.name.rpartition("-")[2]: p.name for p in (output / CELLS).glob("*") if p.is_dir()}
    cells = [replace(c, name=known.get(c.name.rpartition("-")[2], c.name)) for c in plan.cells]
    return replace(plan, cells=cells)


def state(output: Path, cell: PlannedCell) -> State:
    """Returns the state of one cell.

    A finished cell is to be done again if a model of it has another commit on this machine.
    """
    folder = output / CELLS / cell.name
    if (folder / RESULTS).exists():
        return "to do" if _moved(cell.recipe, folder) else "done"
    return "failed" if (folder / FAILURE).exists() else "to do"


def _moved(recipe: Recipe, folder: Path) -> bool:
    """Whether a model of the hub has another commit than when a cell was finished."""
    names = [name for name in (recipe.model, recipe.teacher.model) if name and on_hub(name)]
    if not names:
        return False
    results = Results.read(folder / RESULTS)
    return any(
        moved(name, source)
        for name in names
        for source in (results.model_source, results.teacher_source)
    )


def teaching_key(recipe: Recipe) -> str | None:
    """Returns a key that is equal for cells that share stored predictions of the teacher.

    Returns None if a cell shares none.
    """
    if recipe.method not in ("in_context", "distillation"):
        return None
    sections = {"task", "demonstrations", "prompt", "dtype", "seed", "evaluation"}
    free_text = recipe.task.answers == "text"
    if free_text:  # targets are stored; answers are not
        if recipe.method != "distillation" or not recipe.objective.needs_targets:
            return None
        sections |= {"teacher"}
    parts = recipe.model_dump(mode="json", include=sections)
    if free_text:
        parts["targets"] = [recipe.objective.temperature, recipe.objective.top_k_needed]
    rows = recipe.training.rows  # demonstrations are drawn from the other rows
    return json.dumps([parts, rows, recipe.teacher.model or recipe.model], sort_keys=True)


def run(plan: Plan, output: Path, *, display: Display) -> Progressed:
    """Runs all cells that are not done yet.

    Args:
        plan: The cells.
        output: Folder of the study. Finished cells in it are not run again.
        display: Shows progress.

    Raises:
        OutputExistsError: `output` exists and is not a study.
        OutputError: another process works on this study, or the folder cannot be created.
        KeyboardInterrupt: Ctrl-C; the same call resumes the study.
    """
    if plan.unread:
        display.warn(unread_warning(plan.unread))
    if processes.count() > 1:
        _run_together(plan, output, display)
    else:
        _run_alone(plan, output, display)
    states = {cell.name: state(output, cell) for cell in named_as_before(plan, output).cells}
    return Progressed(
        done=[name for name, reached in states.items() if reached == "done"],
        failed=[name for name, reached in states.items() if reached == "failed"],
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
    """Runs one cell after another in all processes of a launch. An error ends all processes."""

    def begin() -> tuple[Plan, list[PlannedCell]]:
        lock.enter_context(_begin(plan, output))
        known = named_as_before(plan, output)
        _write_index(known, output)
        return known, [cell for cell in known.cells if state(output, cell) != "done"]

    with ExitStack() as lock:
        plan, left = processes.main_does(begin)
        for number, cell in enumerate(left, start=1):
            display.note(f"cell {number} of {len(left)}: {cell.name}")
            _run_in_all(cell, plan, output, display)


def _run_in_all(cell: PlannedCell, plan: Plan, output: Path, display: Display) -> None:
    """Runs a cell in all processes of a launch."""
    folder = output / CELLS / cell.name
    work = folder.with_name(cell.name + ".partial")

    def begin() -> dict[str, Any]:
        _clear(cell, folder, work)
        return _settled(cell.recipe, plan, output)

    recipe = Recipe.parse(processes.main_does(begin))
    from instil.models.load import quiet_libraries
    from instil.pipeline.cell import run_cell

    quiet_libraries()
    try:
        run_cell(recipe, work, store=output / TARGETS, display=display)
    except InstilError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    processes.main_does(lambda: _finish(cell, work, folder))


def _begin(plan: Plan, output: Path) -> AbstractContextManager[object]:
    """Creates the folder of the study and returns a lock on it."""
    known = {INDEX, CELLS, LOCK}
    place = resolved(output)
    try:
        found = {path.name for path in place.iterdir()} if place.is_dir() else {place.name}
        if place.exists() and found and not known & found:
            raise OutputExistsError(
                f"{output} already exists and is not a study",
                mend="name another folder, or remove it",
            )
        (place / CELLS).mkdir(parents=True, exist_ok=True)
        return hold(place / LOCK, of=output)
    except InstilError:
        raise
    except OSError as error:
        raise OutputError(
            f"{output} cannot be created",
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
    """Returns the settings of a cell, with `dtype: auto` replaced by that of a finished cell.

    Otherwise the cells of a study might measure different dtypes on a busy machine.
    """
    settings = recipe.model_dump(mode="json")
    if recipe.dtype == "auto":
        folders = [output / CELLS / c.name for c in plan.cells if c.recipe.dtype == "auto"]
        done = (folder / RESULTS for folder in folders)
        measured = (Results.read(path).dtype for path in done if path.exists())
        settings["dtype"] = next(measured, "auto")
    return settings


def _run_apart(
    cell: PlannedCell, settings: dict[str, Any], output: Path, shown: StudyDisplay
) -> None:
    # Imported here because it loads torch, and the list of the cells needs none.
    from instil.pipeline.worker import KILLED, in_process

    folder = output / CELLS / cell.name
    work = folder.with_name(cell.name + ".partial")
    _clear(cell, folder, work)
    start = time.monotonic()
    shown.begin(cell.name)
    failure = in_process(settings, work, output / TARGETS, shown)
    if failure is None:
        _finish(cell, work, folder)
    else:
        kind, message = failure
        if kind not in (KILLED, DiskFullError.__name__):  # these resume
            shutil.rmtree(work, ignore_errors=True)
        record = Failure(
            name=cell.name,
            varied=cell.varied,
            error=kind,
            message=message,
            seconds=time.monotonic() - start,
        )
        folder.mkdir()
        record.write(folder / FAILURE)
        shown.warn(f"{cell.name} failed: {kind}: {message.splitlines()[0]}")
    shown.end()


def _finish(cell: PlannedCell, work: Path, folder: Path) -> None:
    """Writes the name of a finished cell into its results, and renames its folder."""
    results = Results.read(work / RESULTS)
    named = results.model_copy(update={"name": cell.name, "varied": cell.varied})
    named.write(work / RESULTS)
    work.rename(folder)


def _clear(cell: PlannedCell, folder: Path, work: Path) -> None:
    """Removes the files of an earlier attempt: its failure, and unfinished work.

    Unfinished work with free-text answers stays, because its training can resume. It has the same
    settings, since the name of the cell holds their digest.
    """
    resumes = cell.recipe.task.answers == "text"
    for path in (folder,) if resumes else (folder, work):
        if path.exists():
            shutil.rmtree(path)
