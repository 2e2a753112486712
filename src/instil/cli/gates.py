"""The gates of `instil distill`: the options that end it with status 3."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from instil.errors import ConfigError, InstilError

if TYPE_CHECKING:
    from instil.api import Run
    from instil.results.gate import Bound


def check_options(least: float | None, bound: str | None, most: float | None) -> Bound:
    """Checks `--min-recovery`, `--recovery-bound` and `--max-drift` before any work.

    Raises:
        ConfigError: one of them is wrong, or the bound has no value to reach.
    """
    from instil.results.gate import check_gate, check_most

    if most is not None:
        check_most(most, name="--max-drift")

    if bound is not None and least is None:
        raise ConfigError(
            "--recovery-bound has no effect without --min-recovery",
            got=bound,
            mend="add --min-recovery, or leave the option out",
        )
    return check_gate(0 if least is None else least, bound or "upper", name="--min-recovery")


def check_run(run: Run, least: float | None, bound: Bound, most: float | None) -> None:
    """Raises an error if the run fails a gate. If it fails several, the error names all.

    Raises:
        InstilError: the first gate that fails; the others are its notes.
    """
    gates: list[Callable[[], None]] = []
    if least is not None:
        gates.append(partial(run.check_recovery, least, bound))
    if most is not None:
        gates.append(partial(run.check_drift, most))
    failed: list[InstilError] = []
    for gate in gates:
        try:
            gate()
        except InstilError as error:
            failed.append(error)
    for other in failed[1:]:
        failed[0].add_note(f"{type(other).__name__}: {other}")
    if failed:
        raise failed[0]
