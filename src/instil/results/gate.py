"""The gate on recovery: whether a student is good enough to replace its context."""

from __future__ import annotations

import math
from typing import Literal, get_args

from instil.errors import ConfigError, RecoveryError, did_you_mean
from instil.results.schema import Results

Bound = Literal["upper", "estimate", "lower"]
"""The number that must reach the lowest recovery.

upper or lower: an end of the 95 % interval. estimate: recovery itself.
"""
BOUNDS: tuple[Bound, ...] = get_args(Bound)


def check_gate(least: float, bound: str, *, name: str = "min_recovery") -> Bound:
    """Checks the settings of a gate, and returns the bound.

    Args:
        least: The lowest recovery that is good enough.
        bound: What must reach it.
        name: What the user calls `least`.

    Raises:
        ConfigError: the lowest recovery is not a finite number, or the bound is unknown.
    """
    if not math.isfinite(least):
        raise ConfigError(
            f"{name} is not a finite number",
            got=str(least),
            allowed="a finite number, such as 0.9",
        )
    for known in BOUNDS:
        if bound == known:
            return known
    raise ConfigError(f"unknown bound of recovery {bound!r}", mend=did_you_mean(bound, BOUNDS))


def check_recovery(results: Results, least: float, bound: Bound = "upper") -> None:
    """Raises an error if the student's recovery is too low.

    Args:
        results: Results of a run.
        least: The lowest recovery to accept.
        bound: The number that must reach it. With `upper`, only a student fails that is clearly
            worse. With `lower`, only a student passes that is clearly good enough.

    Raises:
        ConfigError: `least` is not a finite number, or `bound` is unknown.
        RecoveryError: the number is lower, or unknown.
    """
    check_gate(least, bound)
    recovery, interval = results.recovery, results.recovery_interval
    allowed = f"{_NAMES[bound]} of at least {least:g}"
    if recovery is None:
        raise RecoveryError(
            f"recovery is undefined: {_reason(results)}",
            allowed=allowed,
            mend="use a better context, and evaluation rows with outputs",
        )
    if bound == "estimate":
        reached = recovery
    elif interval is None:
        raise RecoveryError(
            f"recovery is {recovery:.3f} without an interval: the context's gain over zero-shot is "
            "not clear of chance on these rows",
            allowed=allowed,
            mend="evaluate on more rows, or judge the estimate itself (bound estimate)",
        )
    else:
        reached = interval.high if bound == "upper" else interval.low
    if reached < least:
        spread = f", 95 % interval {interval.low:.3f} to {interval.high:.3f}" if interval else ""
        raise RecoveryError(
            "the student is too far below the context that it replaces",
            got=f"recovery {recovery:.3f}{spread}",
            allowed=allowed,
            mend="give more inputs or more steps; the report shows the different answers",
        )


_NAMES: dict[Bound, str] = {
    "upper": "an upper bound of recovery",
    "estimate": "a recovery",
    "lower": "a lower bound of recovery",
}


def _reason(results: Results) -> str:
    """Why recovery is undefined."""
    missing = [name for name in ("zero_shot", "in_context") if results.result(name) is None]
    if missing or results.training is None:
        return f"the run has no {' and no '.join(missing) or 'trained student'}"
    if results.methods[0].scores[0].accuracy is None:
        return "the evaluation rows have no outputs"
    return "the context gains no accuracy on the evaluation rows"
