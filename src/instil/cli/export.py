"""The command `instil export`, which makes a model of a student that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import Debug, errors


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    merge: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the whole model, with the adapter merged into its weights, to a new folder.",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="hub:OWNER/NAME",
            help="Upload the model to the hub: what --merge wrote, else the adapter with its card.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make the model on the hub public. Default: private.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a student as a model of its own, or upload it.

    The model card shows the first evaluation row as an example. The key of the hub is the one that
    `hf auth login` has stored, or HF_TOKEN.
    """
    with errors(debug):
        from instil.errors import ConfigError
        from instil.models.load import quiet_libraries
        from instil.pipeline.export import pushed, write_merged
        from instil.pipeline.record import ADAPTER
        from instil.system.disk import from_home

        if merge is None and push is None:
            raise ConfigError(
                "nothing is asked for", mend="add --merge FOLDER or --push hub:OWNER/NAME"
            )
        if push is not None and not push.startswith("hub:"):
            raise ConfigError(
                f"--push {push}", allowed="hub:OWNER/NAME", mend=f"write --push hub:{push}"
            )
        if public and push is None:
            raise ConfigError("--public needs --push")
        quiet_libraries()
        folder, made = from_home(run), None
        if merge is not None:
            made = from_home(merge)
            write_merged(folder, made)
            typer.echo(f"model    {made}")
        if push is not None:
            address = pushed(made or folder / ADAPTER, push.removeprefix("hub:"), public=public)
            typer.echo(f"hub      {address}")
