"""The command line. Slow imports are inside the commands, so that `--help` is fast."""

from __future__ import annotations

from typing import Annotated

import typer

from instil.cli import (
    answer,
    bench,
    check,
    compare,
    demo,
    distill,
    engine,
    export,
    plan,
    recipes,
    rules,
    show,
    study,
    targets,
    trial,
)
from instil.cli.terminal import use_plain_letters

app = typer.Typer(
    name="instil",
    help="Bake a prompt into a language model's weights, with a report that proves it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command(cls=distill.Panels)(distill.distill)
app.command()(answer.answer)
app.command()(show.show)
app.command("try")(trial.trial)
app.command()(check.check)
app.command()(compare.compare)
app.command()(export.export)
app.command()(study.run)
app.command()(study.validate)
app.command()(plan.plan)
app.add_typer(recipes.app, name="recipes")
app.add_typer(targets.app, name="targets")
app.add_typer(rules.app, name="rules")
app.add_typer(bench.app, name="bench")
app.add_typer(engine.app, name="engine")
app.command()(study.report)
app.command()(demo.demo)


def main() -> None:
    """Entry point of the `instil` command."""
    use_plain_letters()
    app()


def _version(value: bool) -> None:
    if value:
        from instil.system.environment import VERSION

        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def instil(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options that come before a command."""
