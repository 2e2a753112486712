"""The command `instil engine start`, which starts a server for runs that are to share it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import Debug, errors

app = typer.Typer(help="Start a server that teaches or answers.", no_args_is_help=True)


@app.callback()
def engine() -> None:
    """Start a server that teaches or answers."""


@app.command("start")
def start(
    model: Annotated[
        str, typer.Option(help="Model to serve, as in --model of distill.", show_default=False)
    ],
    lora: Annotated[
        Path | None,
        typer.Option(metavar="ADAPTER", help="Folder of an adapter to serve, too: RUN/adapter."),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of this machine.")] = 8000,
    dtype: Annotated[
        str, typer.Option(help="Number format as in the run: auto, float32, bfloat16 or float16.")
    ] = "auto",
    outcomes: Annotated[
        int,
        typer.Option(min=1, help="Most log-probabilities of a token: teacher.top_k of the run."),
    ] = 256,
    python: Annotated[
        Path | None,
        typer.Option(
            help="Python of the environment with vLLM. Default: INSTIL_VLLM_PYTHON, else "
            ".venv-vllm/bin/python, else this Python."
        ),
    ] = None,
    option: Annotated[
        list[str], typer.Option(help="Further option of vLLM. May be given several times.")
    ] = [],  # noqa: B006 - typer reads the default; it is never changed
    debug: Debug = False,
) -> None:
    """Start vLLM with what instil needs, until Ctrl-C.

    Runs use it with --set 'teacher.engine={name: vllm, url: "http://127.0.0.1:8000"}'.
    """
    with errors(debug):
        from instil.engines.vllm import started_by
        from instil.errors import DataFileError
        from instil.models.number_format import resolve_dtype
        from instil.models.source import resolve
        from instil.system.disk import from_home

        adapter = None if lora is None else from_home(lora)
        if adapter is not None and not (adapter / "adapter_config.json").is_file():
            raise DataFileError(f"{lora} holds no adapter", allowed="RUN/adapter of a finished run")
        command, environment = started_by(
            resolve(model),
            port=port,
            dtype=resolve_dtype(dtype),
            outcomes=outcomes,
            adapter=adapter,
            python=python and from_home(python),
            options=option,
        )
        typer.echo(f"vLLM starts at http://127.0.0.1:{port}")
        os.execvpe(command[0], command, {**os.environ, **environment})
