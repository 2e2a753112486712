"""The command `instil plan`, which says what a recipe will need before it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from instil.cli.options import Debug, Quiet, RecipeName, Set, errors
from instil.errors import ConfigError

if TYPE_CHECKING:
    from instil.pipeline.planning import Foretold

CARDS = (24.0, 80.0, 141.0)
"""Memory of common accelerators, in GB."""


def plan(
    recipe: RecipeName,
    changes: Set = [],  # noqa: B006 - typer reads the default; it is never changed
    card: Annotated[
        list[float],
        typer.Option(
            min=1,
            metavar="GB",
            help="Memory of an accelerator for which to say whether the run fits. May be given "
            "several times. Default: 24, 80 and 141.",
        ),
    ] = [],  # noqa: B006 - as above
    price_per_hour: Annotated[
        float | None,
        typer.Option(min=0, help="Price of an hour of this machine, to say what the run costs."),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what time, tokens and memory a recipe will need. Runs a small part of it.

    Of a recipe with a grid, the first cell that distils is planned. Nothing is kept but the texts
    that the model writes for `keep`, which the run uses, and a few of its general answers.
    """
    with errors(debug):
        from instil.cli.distill import begun
        from instil.cli.study import plan_of
        from instil.methods import METHODS

        cells = [cell.recipe for cell in plan_of(recipe, changes).cells]
        known = [c for c in cells if c.task.answers == "text" and METHODS[c.method].learns]
        if not known:
            raise ConfigError(
                f"{recipe} has no training with free-text answers, and only these can be foretold",
                mend="name another recipe, or look at the costs in a report of this one",
            )
        first = next((c for c in known if c.method == "distillation"), known[0])
        alike = [c for c in known if (c.method, c.model) == (first.method, first.model)]
        display = begun(quiet)
        from instil.pipeline.planning import foretell

        found = foretell(first, display=display)
        print_plan(found, card or CARDS, price_per_hour=price_per_hour, cells=len(alike))
        if len(cells) > 1:
            typer.echo(f"planned  {METHODS[first.method].label}, {first.model}")
        if first.evaluation.engine is not None:
            typer.echo("planned  as if this process answered, and not an engine")


def print_plan(
    found: Foretold,
    cards: Sequence[float],
    *,
    price_per_hour: float | None = None,
    cells: int = 1,
) -> None:
    """Prints what a run will need.

    Args:
        found: What was foretold.
        cards: Memory of accelerators, in GB.
        price_per_hour: Price of an hour of this machine.
        cells: Cells of the study that train as this one does.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=f"{found.rows[0]:,} rows to learn from, {found.rows[1]:,} to judge on")
    table.add_column("phase")
    for column in ("time", "tokens", "memory"):
        table.add_column(column, justify="right")
    for name, phase in found.phases.items():
        table.add_row(
            name,
            _span(phase.seconds, phase.most_seconds),
            f"{round(phase.tokens, -2):,.0f}" if phase.tokens else "–",
            f"{phase.memory_mb / 1024:.1f} GiB",
        )
    table.add_section()
    table.add_row("all", _span(*found.seconds), "", "")
    console.print(table)
    fixed, most = found.steps
    steps = f"{fixed:,}"
    if most > fixed:
        steps += f", at most {most:,}: training ends by itself when nothing is learnt any more"
    answers = found.answer_tokens
    lines = [
        f"steps     {steps}",
        f"weights   {found.parameters[0]:,}, of which {found.parameters[1]:,} are trained",
    ]
    if answers is not None:
        lines.append(f"answers   {answers:.0f} tokens in the mean, as far as they are known")
    for gigabytes in cards:
        needed, fits = found.on_card(gigabytes)
        verdict = "fits" if fits else "does not fit"
        lines.append(f"card      {gigabytes:g} GB: {verdict} ({needed:.1f} GiB in bfloat16)")
    if price_per_hour is not None:
        low, high = (seconds / 3600 * price_per_hour for seconds in found.seconds)
        lines.append(f"price     {low:.2f}" + (f" to {high:.2f}" if high > low else ""))
    if cells > 1:
        lines.append(f"cells     {cells} of this kind; the numbers are those of one")
    lines.append(f"foretold from a part that took {_time(found.probe_seconds)}")
    console.print("\n".join(lines), markup=False)


def _span(least: float, most: float) -> str:
    return _time(least) if most <= least else f"{_time(least)} to {_time(most)}"


def _time(seconds: float) -> str:
    from instil.report.numerals import NBSP, duration

    return duration(seconds).replace(NBSP, " ")
