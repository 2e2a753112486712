"""The command `instil compare`, which puts two runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instil.cli.options import Debug, errors

if TYPE_CHECKING:
    from instil.report.versus import Finished

SHOWN = 5


def compare(
    first: Annotated[
        Path, typer.Argument(help="Folder of a run, such as the old prompt's.", show_default=False)
    ],
    second: Annotated[Path, typer.Argument(help="Folder of the other run.", show_default=False)],
    html: Annotated[
        Path | None, typer.Option(help="Write all changed rows into this page, too.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare two runs row by row: what got better, and what got worse.

    Only rows that both students answered count. Judge both on the same rows first, if they have
    others: instil check RUN --eval FILE.
    """
    with errors(debug):
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from instil.report.page import compare_page, told
        from instil.report.versus import versus
        from instil.system.disk import from_home

        found = versus(_finished(first), _finished(second))
        table = Table(
            title=f"{found.shared:,} rows that both answered, {found.same:,} with the same answer"
        )
        table.add_column("number")
        for column in ("first", "second"):
            table.add_column(column, justify="right")
        table.add_column("change")
        tones = {"good": "green", "bad": "red", "": ""}
        for name, before, after, change, tone in map(told, found.changes):
            style = tones[tone]
            table.add_row(escape(name), before, after, f"[{style}]{change}[/]" if style else change)
        console = Console(highlight=False, soft_wrap=True)
        console.print(table)
        for row in found.rows[:SHOWN]:
            moved = [f"worse: {one}" for one in row.worse] + [
                f"better: {one}" for one in row.better
            ]
            console.print(escape(", ".join(moved)), style="bold")
            for label, text in (("asked", row.input), ("first", row.before), ("second", row.after)):
                console.print(f"  {label:7}{escape(_line(text))}")
        if len(found.rows) > SHOWN:
            console.print(f"and {len(found.rows) - SHOWN:,} more rows that changed; see --html")
        if html is not None:
            page = from_home(html)
            page.write_text(compare_page(f"{first} and {second}", found), encoding="utf-8")
            typer.echo(f"page     {page}")


def _finished(folder: Path) -> Finished:
    from instil.errors import DataFileError
    from instil.report.versus import Finished
    from instil.results.schema import (
        EVALUATION,
        PREDICTIONS,
        RESULTS,
        EvaluationRow,
        Prediction,
        Results,
    )
    from instil.system.disk import from_home
    from instil.system.files import read_lines

    place = from_home(folder)
    results = Results.read(place / RESULTS)
    if not (place / EVALUATION).is_file():
        raise DataFileError(
            f"{folder} has no {EVALUATION}",
            mend="use a run with written answers, of this version of instil",
        )
    return Finished(
        results,
        read_lines(EvaluationRow, place / EVALUATION),
        read_lines(Prediction, place / PREDICTIONS),
    )


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:159]}…"
