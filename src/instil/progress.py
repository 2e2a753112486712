"""What a person sees while a run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Told of progress: (rows or steps done, token positions computed), each since the call before.
Advance = Callable[[int, int], None]


class Display:
    """Progress bars and notes on standard error; silent if `quiet`.

    Args:
        quiet: Show nothing but warnings.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet = quiet

    def note(self, text: str) -> None:
        """One line about what is being done or was found."""
        if not self.quiet:
            self.console.print(text, markup=False, style="dim")

    def warn(self, text: str) -> None:
        """One line that a person should not miss; shown when quiet, too."""
        self.console.print(f"warning: {text}", markup=False, style="yellow")

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Bar]:
        """A bar that counts up to `total`."""
        columns = (
            TextColumn("{task.description:<44}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        with Progress(*columns, console=self.console, disable=self.quiet) as progress:
            yield Bar(progress, what, total)


class Bar:
    """One running bar."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total, detail="")

    def advance(self, by: int) -> None:
        """Counts `by` more."""
        self._progress.advance(self._task, by)

    def reach(self, count: int, detail: str = "") -> None:
        """Sets the count, with a few words beside it."""
        self._progress.update(self._task, completed=count, detail=detail)
