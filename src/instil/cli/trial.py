"""The command `instil try`: a prompt to type into, and three answers side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instil.cli.options import Debug, errors

if TYPE_CHECKING:
    from instil.methods import MethodName
    from instil.pipeline.trying import Trial

HELP = "Type a query. /new begins a new conversation, /quit or Ctrl-D ends."


def trial(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Ask a finished run: zero-shot, in-context and the student answer side by side.

    Each of them remembers its own answers. /new begins a new conversation, /quit or Ctrl-D ends.
    """
    with errors(debug):
        from instil.models.load import quiet_libraries
        from instil.pipeline.trying import Trial
        from instil.system.disk import from_home

        quiet_libraries()
        asked = Trial.of(from_home(run))
        typer.echo(HELP)
        while True:
            query = _line()
            if query is None or query == "/quit":
                return
            if query == "/new":
                asked.begin()
                typer.echo("a new conversation")
            elif query:
                _ask(asked, query)


def _line() -> str | None:
    """What the user types; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _ask(asked: Trial, query: str) -> None:
    """Shows the answers while they are written, or each when it is whole if nobody looks on."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from instil.methods import METHODS

    console = Console(highlight=False)
    answers: dict[MethodName, str] = dict.fromkeys(asked.methods, "")

    def table() -> Any:
        made = Table(expand=True)
        for name in answers:
            made.add_column(METHODS[name].label, ratio=1)
        made.add_row(*(Text(text) for text in answers.values()))
        return made

    if not console.is_terminal:
        asked.ask(query, answers.__setitem__)
        for name, text in answers.items():
            console.print(Text(f"{METHODS[name].label}: {text}"))
        return
    with Live(table(), console=console, refresh_per_second=8) as live:

        def tell(name: MethodName, text: str) -> None:
            answers[name] = text
            live.update(table())

        asked.ask(query, tell)
