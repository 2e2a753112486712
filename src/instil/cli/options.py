"""Options that several commands share, and how an error ends a command."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn

import typer

from instil.errors import DiskFullError, InstilError
from instil.system import processes
from instil.system.disk import is_disk_full

INTERRUPTED = 130

RecipeName = Annotated[
    str,
    typer.Argument(help="YAML file of a recipe, or name of a shipped recipe.", show_default=False),
]
Set = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting of the recipe, such as training.max_steps=30 or grid.seed=[0]. "
        "The value is YAML. May be given several times.",
    ),
]


def debug_option(panel: str | None = None) -> Any:
    """Returns the option `--debug`, in a panel of the help."""
    return typer.Option(
        "--debug", help="If an error occurs, show its traceback.", rich_help_panel=panel
    )


def quiet_option(panel: str | None = None) -> Any:
    """Returns the option `--quiet`, in a panel of the help."""
    return typer.Option(
        "--quiet", help="Show only the result, without progress bars.", rich_help_panel=panel
    )


def overwrite_option(panel: str | None = None) -> Any:
    """Returns the option `--overwrite`, in a panel of the help."""
    return typer.Option("--overwrite", help="Replace the run at --output.", rich_help_panel=panel)


def kl_share_option(panel: str | None = None) -> Any:
    """Returns the option `--max-kl-share`, in a panel of the help."""
    return typer.Option(
        help="Exit with status 3 if the student's KL to the teacher is above this share of "
        "zero-shot's. It needs no outputs. 0.15 is little.",
        rich_help_panel=panel,
    )


def leak_option(panel: str | None = None) -> Any:
    """Returns the option `--max-leak`, in a panel of the help."""
    return typer.Option(
        help="Exit with status 3 if more than this share of the answers has a phrase of the context "
        "that the teacher does not write.",
        rich_help_panel=panel,
    )


def rule_option(panel: str | None = None) -> Any:
    """Returns the option `--min-rule`, in a panel of the help."""
    return typer.Option(
        metavar="NAME=SHARE",
        help="Exit with status 3 if fewer of the student's answers obey this rule of --rules. The "
        "name * means every rule. May be given several times.",
        rich_help_panel=panel,
    )


def metric_option(panel: str | None = None) -> Any:
    """Returns the option `--min-metric`, in a panel of the help."""
    return typer.Option(
        metavar="NAME=VALUE",
        help="Exit with status 3 if the student's mean of this metric is lower. May be given several "
        "times.",
        rich_help_panel=panel,
    )


def gate_option(panel: str | None = None) -> Any:
    """Returns the option `--gate`, in a panel of the help."""
    return typer.Option(
        metavar="FILE|default",
        help="Exit with status 3 if a limit of this YAML file is not kept, such as max_drift: 0.05. "
        "default: recovery of 0.9, or without outputs a KL of 0.15 of zero-shot's; drift of 0.05; "
        "no leaks.",
        rich_help_panel=panel,
    )


Debug = Annotated[bool, debug_option()]
Quiet = Annotated[bool, quiet_option()]
Overwrite = Annotated[bool, overwrite_option()]


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """Ends the command after an error.

    For an `InstilError` it prints the message and exits with the error's status. For other
    errors Python prints the traceback. If there are several processes, only one prints.
    """
    try:
        yield
        processes.leave()
        if sys.stdout is not None:
            sys.stdout.flush()  # the disk of a redirected output may be full
    except InstilError as error:
        _tell(error, debug)
    except KeyboardInterrupt:
        with processes.telling() as prints:
            if prints:
                typer.echo("interrupted; repeat the same command to resume", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if processes.others_failed():
            sys.exit(1)
        if is_disk_full(error):
            _tell(DiskFullError("a disk is full", got=str(error), mend="free some space"), debug)
        raise


def _tell(error: InstilError, debug: bool) -> NoReturn:
    """Prints an error in one of the processes, and ends all of them with its status."""
    with processes.telling() as prints, suppress(OSError):  # standard error may be closed
        if prints and debug:
            traceback.print_exc()
        if prints:
            told = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
            typer.echo("\n".join(told), err=True)
    sys.exit(error.exit_status)
