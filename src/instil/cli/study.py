"""The commands `instil run`, `instil validate` and `instil report`, for studies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from instil.cli.options import Debug, Quiet, RecipeName, Set, errors
from instil.errors import ConfigError
from instil.system import processes
from instil.system.disk import from_home

if TYPE_CHECKING:
    from instil.recipe.grid import Plan
    from instil.report import Format


def run(
    recipe: RecipeName,
    changes: Set = [],  # noqa: B006 - typer reads the default; it is never changed
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the study. Default: runs/NAME, with the recipe's name."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="List the cells and which teacher predictions they share, but run nothing.",
        ),
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a recipe: all cells of its grid, and a report of their results.

    Finished cells are not run again. So after an interruption, the same command
    resumes the study.

    Exit status: 0 all cells are done, 1 some cells failed, 2 the recipe is wrong.
    """
    with errors(debug):
        plan = plan_of(recipe, changes)
        folder = from_home(output) if output else _default_folder(recipe)
        if dry_run:
            _print_plan(plan, folder)
            return
        from instil.pipeline import study
        from instil.system.progress import Display

        progressed = study.run(plan, folder, display=Display(quiet=quiet))
        if not processes.is_main():
            return
        _report([folder], folder, _formats(None))
        typer.echo(f"{len(progressed.done)} of {_counted(plan)} done")
        if progressed.failed:
            typer.echo(f"{len(progressed.failed)} failed:", err=True)
            for name in progressed.failed:
                typer.echo(f"  {folder / 'cells' / name / 'failure.json'}", err=True)
            sys.exit(1)


def validate(recipe: RecipeName, changes: Set = [], debug: Debug = False) -> None:  # noqa: B006
    """Check a recipe, every cell of its grid, and the rows in local files. Loads no model."""
    with errors(debug):
        from instil.pipeline.rows import problems_of_rows

        plan = plan_of(recipe, changes)
        problems = problems_of_rows(cell.recipe for cell in plan.cells)
        if problems:
            raise ConfigError.listing(problems)
        if plan.unread:
            from instil.recipe.canonical import unread_warning

            typer.echo(f"warning: {unread_warning(plan.unread)}", err=True)
        typer.echo(f"{recipe}: {_counted(plan)}, no problem found")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of studies, cells or runs.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report. Default: the first folder of RUNS.")
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Formats to write, separated by commas: html, md, tex, csv, svg, pdf. "
            "Default: html for a single run, else all.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the report of one or several runs or studies. Runs no model."""
    with errors(debug):
        from instil.report import write_report

        single = _is_run(runs[0])
        if single and len(runs) == 1 and output is None and formats is None:
            typer.echo(write_report(runs[0]))
            return
        if single and len(runs) > 1 and output is None:
            raise ConfigError(
                f"{runs[0]} already holds the report of a single run",
                mend="name a folder for the joint report with --output",
            )
        _report(runs, from_home(output) if output else runs[0], _formats(formats))


def _is_run(path: Path) -> bool:
    from instil.results.schema import RESULTS

    return (path / RESULTS).is_file()


def _formats(written: str | None) -> list[Format]:
    """Returns the formats that `--format` names, or all formats if it is not given.

    Raises:
        ConfigError: there is no such format.
    """
    from instil.report import Format

    known = get_args(Format)
    chosen = [name.strip() for name in written.split(",")] if written is not None else list(known)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"--format: unknown format {name!r}", allowed=", ".join(known))
    return chosen  # type: ignore[return-value]


def _report(paths: Sequence[Path], folder: Path, formats: Sequence[Format]) -> None:
    """Writes the report of all folders together, and prints its files."""
    from instil.report import read_study, write_study

    for path in write_study(read_study(paths), folder, formats):
        if path.parent == folder:
            typer.echo(path)


def _counted(plan: Plan) -> str:
    return f"{len(plan.cells)} cell{'s' * (len(plan.cells) != 1)}"


def _default_folder(recipe: str) -> Path:
    from instil.recipe.shipped import find

    return Path("runs") / find(recipe).stem


def plan_of(recipe: str, changes: list[str]) -> Plan:
    """Returns the cells of a recipe.

    Args:
        recipe: Name of a shipped recipe, or path of a recipe file.
        changes: Values of `--set`.
    """
    from instil.recipe.changes import planned

    return planned(recipe, {}, None, changes)


def _print_plan(plan: Plan, folder: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from instil.pipeline.study import named_as_before, state, teaching_key

    plan = named_as_before(plan, folder)
    table = Table(title=escape(f"{plan.title or 'study'}: {_counted(plan)} in {folder}"))
    for column in ("cell", "state", "teacher's predictions"):
        table.add_column(column, overflow="fold")
    first_cells: dict[str, str] = {}
    for cell in plan.cells:
        key = teaching_key(cell.recipe)
        shared = "–"
        if key is not None:
            first = first_cells.setdefault(key, cell.name)
            shared = "computed" if first == cell.name else f"shared with {first}"
        table.add_row(escape(cell.name), state(folder, cell), escape(shared))
    Console(highlight=False).print(table)
