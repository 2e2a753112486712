"""Shows the progress of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import IO, Any, Self, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from instil.system import processes

# Is called with the rows or steps done and the token positions computed since the last call.
Advance = Callable[[int, int], None]

RELAY_SECONDS = 0.1  # between two messages about one bar


class Display:
    """Progress bars and notes on standard error.

    If there are several processes, only the main one shows them.

    Args:
        quiet: Show only warnings.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(file=cast(IO[str], _Errors()), highlight=False)
        self.quiet = quiet or not processes.is_main()

    def note(self, text: str) -> None:
        """Shows one line of information."""
        if not self.quiet:
            self.console.print(text, markup=False, style="dim")

    def warn(self, text: str) -> None:
        """Shows one line of warning, even if `quiet` is set."""
        if processes.is_main():
            self.console.print(f"warning: {text}", markup=False, style="yellow")

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Bar]:
        """Shows a bar that counts up to `total`."""
        with _progress(self.console, quiet=self.quiet) as progress:
            yield Bar(progress, what, total)


class _Errors:
    """Standard error. What cannot be written is dropped: a closed pipe must not end the work."""

    @property
    def _stream(self) -> Any:
        # While a bar is shown, `rich` puts a stream of its own in place of standard error.
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError, AttributeError):  # closed, full, or there is none
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()


class Bar:
    """A running progress bar."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total, detail="")

    def advance(self, by: int) -> None:
        """Adds to the count."""
        self._progress.advance(self._task, by)

    def reach(self, count: int, detail: str = "", total: int | None = None) -> None:
        """Sets the count, a short text next to the bar, and the total if it has changed."""
        self._progress.update(self._task, completed=count, detail=detail, total=total)


class StudyDisplay:
    """The display of a study: finished cells, time left, and progress of the running cell.

    Args:
        display: Display to use.
        cells: Number of cells.
        done: Number of cells that were finished earlier.
    """

    def __init__(self, display: Display, cells: int, done: int) -> None:
        self._display = display
        self._progress = _progress(display.console, quiet=display.quiet)
        self._cells, self._done, self._run = cells, done, 0
        self._all = self._progress.add_task("cells", total=cells, completed=done, detail="")
        self._now: TaskID | None = None
        self._spent = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, name: str) -> None:
        """Shows that a cell starts."""
        self._start = time.monotonic()
        self._progress.update(self._all, detail=f"{self._left()}{name}")

    def end(self) -> None:
        """Shows that the running cell has ended."""
        self._run += 1
        self._spent += time.monotonic() - self._start
        self._drop()
        self._progress.update(self._all, completed=self._done + self._run, detail=self._left())

    def warn(self, text: str) -> None:
        """Shows one line of warning."""
        self._display.warn(text)

    def show(self, kind: str, *content: Any) -> None:
        """Shows a message from the `Relay` of a cell."""
        if kind == "warn":
            self.warn(content[0])
        elif kind == "bar":
            self._drop()
            what, total = content
            self._now = self._progress.add_task(f"  {what}", total=total, detail="")
        elif self._now is not None:
            count, detail, total = content
            self._progress.update(self._now, completed=count, detail=detail, total=total)

    def _drop(self) -> None:
        if self._now is not None:
            self._progress.remove_task(self._now)
            self._now = None

    def _left(self) -> str:
        """Estimates the time left from the mean time per cell. Cells differ, so this is a guess."""
        if not self._run:
            return ""
        seconds = self._spent / self._run * (self._cells - self._done - self._run)
        return f"about {max(1, round(seconds / 60))} min left  " if seconds else ""


class Relay(Display):
    """A display that sends its content to another process.

    Args:
        pipe: Connection to the `StudyDisplay.show` of that process.
    """

    def __init__(self, pipe: Connection) -> None:
        super().__init__(quiet=True)
        self._pipe = pipe

    def note(self, text: str) -> None:
        """Does nothing: the display of a study has no space for notes."""

    def warn(self, text: str) -> None:
        """Sends the warning."""
        self._pipe.send(("warn", text))

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Bar]:
        """Shows a bar in the other process."""
        self._pipe.send(("bar", what, total))
        yield _RelayBar(self._pipe)


class _RelayBar(Bar):
    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._count, self._last_sent = pipe, 0, 0.0

    def advance(self, by: int) -> None:
        self.reach(self._count + by)

    def reach(self, count: int, detail: str = "", total: int | None = None) -> None:
        self._count, now = count, time.monotonic()
        if now - self._last_sent >= RELAY_SECONDS or total is not None:
            self._last_sent = now
            self._pipe.send(("reach", count, detail, total))


def _progress(console: Console, *, quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description:<44}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    return Progress(*columns, console=console, disable=quiet)
