"""What all commands share: common options, and how an error ends a command."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from instil.errors import InstilError
from instil.system import processes

INTERRUPTED = 130

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at --output.")]


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """Errors of ours end the command with their message and status; others keep their traceback.

    Of several processes one tells.
    """
    try:
        yield
        processes.leave()
    except InstilError as error:
        with processes.telling() as mine:
            if mine and debug:
                traceback.print_exc()
            if mine:
                typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        with processes.telling() as mine:
            if mine:
                typer.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(INTERRUPTED)
    except Exception:
        if processes.others_failed():
            sys.exit(1)
        raise
