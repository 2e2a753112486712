"""The command `instil bench`, which runs a benchmark that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import Debug, Quiet, errors

app = typer.Typer(help="Run a benchmark on a model.", no_args_is_help=True)


@app.command("system-prompts")
def system_prompts(
    model: Annotated[
        str, typer.Option(help="Model to train, as in distill.", show_default=False)
    ] = "bundled:smollm2-135m-instruct",
    output: Annotated[Path, typer.Option(help="Folder for the conversations and the runs.")] = Path(
        "runs/system-prompts"
    ),
    only: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="Only this prompt. May be given several times."),
    ] = [],  # noqa: B006 - typer reads the default; it is never changed
    learn: Annotated[int, typer.Option(help="Conversations to learn from, for each prompt.")] = 300,
    held_out: Annotated[int, typer.Option(help="Conversations that are held out.")] = 100,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 25,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Bake five production prompts from conversations, and compare the student with its teacher.

    The model answers the conversations itself, with the prompt. What is there already is not made
    again, so the same command resumes. With the bundled model, it takes an hour on 2 cores.
    """
    with errors(debug):
        from instil.bench.baking import bench, table
        from instil.bench.conversations import NAMES
        from instil.errors import ConfigError, did_you_mean
        from instil.system.disk import from_home

        for name in only:
            if name not in NAMES:
                raise ConfigError(f"--only {name}: {did_you_mean(name, NAMES)}")
        outcomes = bench(
            model,
            from_home(output),
            names=only or NAMES,
            learn=learn,
            held_out=held_out,
            steps=steps,
            seed=seed,
            quiet=quiet,
        )
        typer.echo(table(outcomes))
