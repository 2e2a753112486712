"""A cell in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from instil.errors import InstilError
from instil.pipeline.given import Given
from instil.recipe.grid import PlannedCell
from instil.recipe.recipe import Recipe
from instil.results.cell import Cell
from instil.system.progress import Display, Relay, StudyDisplay
from instil.tasks.free_text import FreeText

KILLED = "killed"  # the kind of failure where the system ended a process


def in_process(
    cell: PlannedCell, settings: dict[str, Any], work: Path, targets: Path, shown: StudyDisplay
) -> tuple[str, str] | None:
    """Runs a cell elsewhere; what went wrong, if anything did: the kind of error and its message."""
    # Children of a server that has imported everything and computed nothing start at once.
    method = "forkserver" if sys.platform != "win32" else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(
            ["instil.pipeline.labels", "instil.pipeline.experiment", "instil.pipeline.text"]
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
    from instil.models.load import quiet_libraries

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
        from instil.pipeline import experiment

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
    if isinstance(recipe.task, FreeText):
        from instil.pipeline.text import WritingCell

        return WritingCell.prepare(recipe, store, display).run(folder, name, varied)
    from instil.pipeline.labels import LabelCell

    return LabelCell.prepare(recipe, store, display).run(folder, name, varied)
