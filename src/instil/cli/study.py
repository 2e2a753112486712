"""`instil run`, `instil validate` and `instil report`: studies from recipe files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instil.cli.options import Debug, Quiet, errors
from instil.errors import ConfigError
from instil.system import processes

if TYPE_CHECKING:
    from instil.recipe.grid import Plan
    from instil.report import Format


FORMATS: tuple[Format, ...] = ("html", "md", "tex", "csv", "svg", "pdf")

RecipeName = Annotated[
    str, typer.Argument(help="A YAML file, or the name of a shipped recipe.", show_default=False)
]
Set = Annotated[
    list[str],
    typer.Option(
        "--set", help="KEY=VALUE: change a setting, such as training.max_steps=30 or grid.seed=[0]."
    ),
]


def run(
    recipe: RecipeName,
    changes: Set = [],  # noqa: B006 - typer reads the default, nobody changes it
    output: Annotated[
        Path | None, typer.Option(help="Folder. Default: runs/ and the recipe's name.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the cells and what would be reused; run nothing."),
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a recipe: all cells of its grid, and a report over them.

    A cell that is done is not run again, so a study that was interrupted in any way goes on when the same command is
    given again. Exit status: 0 all cells are done, 1 some failed, 2 something in the recipe is wrong.
    """
    with errors(debug):
        plan = plan_of(recipe, changes)
        folder = output or Path("runs") / Path(recipe).stem
        if dry_run:
            _print_plan(plan, folder)
            return
        from instil.pipeline import study
        from instil.system.progress import Display

        progressed = study.run(plan, folder, display=Display(quiet=quiet))
        if not processes.is_main():
            return
        _report([folder], folder, FORMATS)
        typer.echo(f"{len(progressed.done)} of {_counted(plan)} done")
        if progressed.failed:
            typer.echo(f"{len(progressed.failed)} failed:", err=True)
            for name in progressed.failed:
                typer.echo(f"  {folder / 'cells' / name / 'failure.json'}", err=True)
            sys.exit(1)


def validate(recipe: RecipeName, changes: Set = [], debug: Debug = False) -> None:  # noqa: B006
    """Check a recipe and every cell of its grid, and the rows that lie in local files; no model is loaded."""
    with errors(debug):
        from instil.pipeline.rows import problems_of_rows

        plan = plan_of(recipe, changes)
        problems = problems_of_rows(cell.recipe for cell in plan.cells)
        if problems:
            raise ConfigError.listing(problems)
        typer.echo(f"{recipe}: {_counted(plan)}, no problem found")


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of studies, cells or runs.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to. Default: the first of RUNS.")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="Which of html, md, tex, csv, svg, pdf; commas between.")
    ] = ",".join(FORMATS),
    debug: Debug = False,
) -> None:
    """Draw the report of one run, of a study, or of several together, without running anything."""
    with errors(debug):
        chosen = [name.strip() for name in formats.split(",")]
        unknown = [name for name in chosen if name not in FORMATS]
        if unknown:
            raise ConfigError(f"--format {unknown[0]!r}", allowed=", ".join(FORMATS))
        from instil.report.run_cells import is_run

        if len(runs) > 1 and output is None and is_run(runs[0]):
            raise ConfigError(
                f"{runs[0]} has a report of its own",
                mend="name a folder for the report of all with --output",
            )
        _report(runs, output or runs[0], chosen)  # type: ignore[arg-type]


def _report(paths: Sequence[Path], folder: Path, formats: Sequence[Format]) -> None:
    """Draws the report of everything together; names those of a single run, and of runs without gold outputs."""
    from instil.report import read_study, write_study
    from instil.report.run_cells import is_run, run_cells

    cells = [cell for path in paths for cell in (sorted(path.glob("cells/*")) or [path])]
    runs = [path for path in cells if is_run(path)]
    graded = all(run_cells(path, path.name) for path in runs)
    if runs == cells and (len(runs) == 1 or not graded):
        from instil.api import Run

        for path in runs:
            typer.echo(Run(path).report())
        if len(runs) > 1:
            typer.echo("Their rows have no outputs, so no accuracy to compare.", err=True)
        return

    for path in write_study(read_study(paths), folder, formats):
        if path.parent == folder:
            typer.echo(path)


def _counted(plan: Plan) -> str:
    return f"{len(plan.cells)} cell{'s' * (len(plan.cells) != 1)}"


def plan_of(recipe: str, changes: list[str]) -> Plan:
    """The cells of a recipe, by its name or file, with changes as `--set` writes them."""
    from instil.recipe.grid import override, plan, read_recipe
    from instil.recipe.shipped import find

    return plan(override(read_recipe(find(recipe)), changes))


def _print_plan(plan: Plan, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from instil.pipeline.study import named_as_before, state, teaching_key

    plan = named_as_before(plan, folder)
    table = Table(title=f"{plan.title or 'study'}: {_counted(plan)} in {folder}")
    for column in ("cell", "state", "teacher's predictions"):
        table.add_column(column, overflow="fold")
    taught: dict[str, str] = {}
    for cell in plan.cells:
        key = teaching_key(cell.recipe)
        shared = "–"
        if key is not None:
            first = taught.setdefault(key, cell.name)
            shared = "computed" if first == cell.name else f"shared with {first}"
        table.add_row(cell.name, state(folder, cell), shared)
    Console(highlight=False).print(table)
