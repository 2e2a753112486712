"""The command `instil demo`, which bakes the demonstrations that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from instil.cli.distill import run_one
from instil.cli.options import Debug, Overwrite, Quiet, errors
from instil.cli.summary import print_run
from instil.system import processes

DEMO_MODEL = "bundled:smollm2-135m-instruct"


def demo_recipe() -> dict[str, Any]:
    """The settings of the demo."""
    from importlib.resources import files

    folder = Path(str(files("instil") / "demo"))
    return {
        "model": DEMO_MODEL,
        "task": {
            "name": "files",
            "inputs": str(folder / "inputs.jsonl"),
            "eval": str(folder / "eval.jsonl"),
            "demos": str(folder / "demonstrations.jsonl"),
        },
        "prompt": {"format": "plain"},
        "training": {"batch_size": 8},  # half the default, so that it ends sooner
    }


def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for the run: adapter, report, scores and predictions.")
    ] = Path("runs/demo"),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Distil the bundled demonstrations into the bundled model.

    Takes two to three minutes on two CPU cores.
    """
    with errors(debug):
        run = run_one(demo_recipe(), (), output=output, overwrite=overwrite, quiet=quiet)
        if processes.is_main():
            print_run(run)
