"""The command `instil show`: what teacher and student read in a row, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instil.cli.options import Debug, errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from instil.pipeline.showing import Piece, ShownTurn

STYLES = {"context": "yellow", "own": "magenta", "said": "", "answer": "bold green"}
SHORT = 1200
"""Most letters of a piece in the terminal; the page shows all of it."""


def show(
    file: Annotated[
        Path,
        typer.Argument(help="Rows to learn from, as --inputs of distill.", show_default=False),
    ],
    row: Annotated[int, typer.Option(help="Number of the row, from 1.")] = 1,
    model: Annotated[
        str, typer.Option(help="Model whose template and tokens are shown.")
    ] = "bundled:smollm2-135m-instruct",
    demos: Annotated[Path | None, typer.Option(help="File of demonstrations.")] = None,
    instruction: Annotated[Path | None, typer.Option(help="Text file with an instruction.")] = None,
    document: Annotated[Path | None, typer.Option(help="Text file with a document.")] = None,
    context_from_logs: Annotated[
        bool,
        typer.Option("--context-from-logs", help="Take the context out of the conversations."),
    ] = False,
    completions: Annotated[
        str, typer.Option(help="Completions to learn: teacher or gold.")
    ] = "teacher",
    format: Annotated[
        str, typer.Option(help="Format of the prompts: chat, plain or auto.")
    ] = "auto",
    changes: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change any setting of the recipe. May be given several times.",
        ),
    ] = [],  # noqa: B006 - typer reads the default; it is never changed
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page that shows all of it.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what teacher and student read in a row of a file, and what is learnt.

    Loads no weights. Pieces that only one side reads, and answers that are learnt, have colours.
    """
    with errors(debug):
        named = {"demos": demos, "instruction": instruction, "document": document}
        settings: dict[str, Any] = {
            "model": model,
            "task": {
                "name": "files",
                "inputs": str(file),
                "context_from_logs": context_from_logs,
                **{name: str(path) for name, path in named.items() if path},
            },
            "teacher": {"completions": completions},
            "prompt": {"format": format},
        }
        from instil.models.load import outline, quiet_libraries
        from instil.pipeline.showing import KINDS, show
        from instil.recipe.grid import override
        from instil.recipe.recipe import Recipe

        recipe = Recipe.parse(override(settings, changes))
        quiet_libraries()
        turns = show(recipe, outline(recipe.model), row)
        title = f"{file}, row {row}, {recipe.model}"
        _print(title, turns, KINDS)
        if html is not None:
            from instil.report.page import show_page

            html.write_text(show_page(title, turns, KINDS), encoding="utf-8")
            typer.echo(f"page  {html}")


def _print(title: str, turns: Sequence[ShownTurn], kinds: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    legend = Text(title + "\n")
    for kind, what in kinds.items():
        legend.append(f"{what}   ", STYLES[kind] or "dim")
    console.print(legend)
    for turn in turns:
        table = Table(title=turn.title, expand=True)
        cells = []
        for side, pieces in (("teacher", turn.teacher), ("student", turn.student)):
            table.add_column(f"{side}, {sum(piece.tokens for piece in pieces):,} tokens", ratio=1)
            cells.append(_text(pieces))
        table.add_row(*cells)
        console.print(table)
        if turn.logged is not None:
            console.print(Text(f"logged answer: {turn.logged}", "dim"))


def _text(pieces: Sequence[Piece]) -> Any:
    from rich.text import Text

    made = Text()
    for piece in pieces:
        text = piece.text or "(the teacher writes the answer)"
        if len(text) > SHORT:
            text = f"{text[: SHORT // 2]} … {text[-SHORT // 2 :]}"
        made.append(text, STYLES[piece.kind])
    return made
