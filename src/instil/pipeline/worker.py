"""Runs a cell in its own process."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from instil.errors import DiskFullError, InstilError
from instil.pipeline.cell import run_cell
from instil.recipe.recipe import Recipe
from instil.system.disk import is_disk_full
from instil.system.progress import Relay, StudyDisplay

LONGEST_FOLDER = 64  # bytes; the path of a socket has at most 103, of which its name takes 32
KILLED = "killed"  # kind of failure: the process ended without a message


def in_process(
    settings: dict[str, Any], work: Path, targets: Path, shown: StudyDisplay
) -> tuple[str, str] | None:
    """Runs a cell in another process.

    Args:
        settings: Settings of the recipe.
        work: Folder to write to.
        targets: Folder with the predictions of teachers.
        shown: Shows the progress of the cell.

    Returns:
        Kind of error and message; None if the cell is complete.
    """
    method = _method()
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["instil.pipeline.labels", "instil.pipeline.text"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, settings, work, targets))
    with _without_script():
        process.start()
    sender.close()
    failure: tuple[str, str] | None = None
    reported = False
    try:
        while True:
            try:
                message = receiver.recv()
            except (EOFError, OSError):  # the process has ended, perhaps while it was sending
                break
            if message[0] == "interrupted":
                raise KeyboardInterrupt
            if message[0] == "ended":
                reported, failure = True, message[1]
            else:
                shown.show(*message)
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
        receiver.close()
    if reported:
        return failure
    how = f"by signal {-process.exitcode}" if (process.exitcode or 0) < 0 else "without a message"
    return KILLED, f"the process ended {how}; it may have run out of memory"


def _method() -> str:
    """How a process is started.

    The fork server has imported all modules, so its child processes start at once. It needs a
    socket, whose path must be short.
    """
    short = len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER
    return "forkserver" if sys.platform != "win32" and short else "spawn"


@contextmanager
def _without_script() -> Iterator[None]:
    """Hides the calling script. Otherwise a new process would run it again."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _work(pipe: Connection, settings: Mapping[str, Any], work: Path, targets: Path) -> None:
    """Runs the cell and sends the outcome to the parent process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from instil.models.load import quiet_libraries

    quiet_libraries()
    try:
        run_cell(Recipe.parse(settings), work, store=targets, display=Relay(pipe))
    except BrokenPipeError:
        return  # the parent process has ended
    except KeyboardInterrupt:
        # The parent gets Ctrl-C too, but a destructor or callback may have swallowed the exception.
        with suppress(BrokenPipeError):
            pipe.send(("interrupted",))
    except InstilError as error:
        pipe.send(("ended", (type(error).__name__, str(error))))
    except Exception as error:
        kind = DiskFullError if is_disk_full(error) else type(error)
        text = f"{error}\n{traceback.format_exc()}"
        pipe.send(("ended", (kind.__name__, text)))
    else:
        pipe.send(("ended", None))


def _end_with_parent() -> None:
    """Ends this process when the process of the study is killed.

    Otherwise it could write to a folder that another process has taken over.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
