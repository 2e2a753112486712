"""Runs a plan: each cell in a process of its own, whole or not at all, and never twice.

A process of its own makes a cell's peak memory its own, and lets the study outlive a cell that is killed. A study's
folder says how far it got: a cell is done when its folder has its name, failed when that folder holds `failure.json`.
So a study that was interrupted in any way goes on when it is run again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from instil import processes
from instil.cell import CELL, FAILURE, Cell, Failure
from instil.config import Recipe
from instil.errors import InstilError, OutputError, OutputExistsError
from instil.grid import Plan, PlannedCell
from instil.progress import Display, Relay, StudyDisplay
from instil.results import RESULTS
from instil.split import Given
from instil.stored import whole
from instil.study_index import CELLS, INDEX, StudyIndex
from instil.task.writing import WritingTask

TARGETS, RECIPE, LOCK = "targets", "recipe.yaml", ".lock"
KILLED = "killed"  # the kind of failure where the system ended a process
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
    written = isinstance(recipe.task, WritingTask)
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
    from instil.model import quiet_libraries

    quiet_libraries()
    if recipe.task is None:
        from instil import experiment

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
    with whole(output / RECIPE) as work:
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
    failure = _in_process(cell, settings, work, output / TARGETS, shown)
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
    goes_on = isinstance(cell.recipe.task, WritingTask | None)
    for path in (folder,) if goes_on else (folder, work):
        if path.exists():
            shutil.rmtree(path)


def _in_process(
    cell: PlannedCell, settings: dict[str, Any], work: Path, targets: Path, shown: StudyDisplay
) -> tuple[str, str] | None:
    """Runs a cell elsewhere; what went wrong, if anything did: the kind of error and its message."""
    # Children of a server that has imported everything and computed nothing start at once.
    method = "forkserver" if sys.platform != "win32" else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(
            ["instil.classification", "instil.experiment", "instil.writing"]
        )
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_work, args=(there, settings, cell.name, dict(cell.varied), work, targets)
    )
    process.start()
    there.close()
    ended: tuple[str, str] | None = None
    told = False
    try:
        while True:
            try:
                message = here.recv()
            except (EOFError, OSError):  # it has ended, perhaps in the middle of a word
                break
            if message[0] == "interrupted":
                raise KeyboardInterrupt
            if message[0] == "ended":
                told, ended = True, message[1]
            else:
                shown.show(*message)
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
        here.close()
    if told:
        return ended
    how = f"by signal {-process.exitcode}" if (process.exitcode or 0) < 0 else "without a word"
    return KILLED, f"the process ended {how}: out of memory?"


def _work(
    pipe: Connection,
    settings: Mapping[str, Any],
    name: str,
    varied: dict[str, Any],
    work: Path,
    targets: Path,
) -> None:
    """What a cell's process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from instil.model import quiet_libraries

    quiet_libraries()
    try:
        _do(Recipe.parse(settings), name, varied, work, targets, Relay(pipe))
    except BrokenPipeError:
        return  # the parent is gone
    except KeyboardInterrupt:
        # The parent was interrupted, too, but may have been in code that swallows it: a destructor, a callback.
        with suppress(BrokenPipeError):
            pipe.send(("interrupted",))
    except InstilError as error:
        pipe.send(("ended", (type(error).__name__, str(error))))
    except Exception as error:
        told = f"{error}\n{traceback.format_exc()}"
        pipe.send(("ended", (type(error).__name__, told)))
    else:
        pipe.send(("ended", None))


def _end_with_parent() -> None:
    """Ends this process when its study is killed: another one may take the folder over."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(
    recipe: Recipe, name: str, varied: dict[str, Any], work: Path, targets: Path, display: Display
) -> None:
    if recipe.task is None:
        from instil import experiment

        given = Given.read(recipe)
        experiment.run(recipe, given, output=work, overwrite=True, display=display)
        return
    work.mkdir(parents=True, exist_ok=True)
    run_cell(recipe, work, name=name, varied=varied, store=targets, display=display)


def run_cell(
    recipe: Recipe,
    folder: Path,
    *,
    name: str,
    varied: dict[str, Any],
    store: Path,
    display: Display,
) -> Cell:
    """Runs one cell with a task in this process; writes `cell.json`, `predictions.jsonl`, `environment.json`, trained weights.

    Args:
        recipe: With a task.
        folder: Where to write; it exists.
        name: Of the cell.
        varied: What the grid varies, with this cell's values.
        store: Folder of what teachers have said, shared by all cells of a study.
        display: Shows progress.

    Raises:
        InstilError: the task, the models or the settings do not allow the run.
    """
    if isinstance(recipe.task, WritingTask):
        from instil.writing import WritingCell

        return WritingCell.prepare(recipe, store, display).run(folder, name, varied)
    from instil.classification import LabelCell

    return LabelCell.prepare(recipe, store, display).run(folder, name, varied)
