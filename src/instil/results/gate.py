"""The gates: whether a student is good enough to replace its context, and keeps the rest."""

from __future__ import annotations

import math
from typing import Literal, get_args

from instil.errors import ConfigError, DriftError, RecoveryError, did_you_mean
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
    _check_finite(least, name, 0.9)
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


def check_drift(results: Results, most: float) -> None:
    """Raises an error if the student has changed too much on unrelated text.

    Args:
        results: Results of a run.
        most: The highest drift to accept, KL(base || student) in nats per token.

    Raises:
        ConfigError: `most` is not a finite number, or negative.
        DriftError: the drift is higher, or was not measured.
    """
    check_most(most)
    drift = results.methods[0].drift
    allowed = f"at most {most:g} nats per token"
    if drift is None:
        raise DriftError("drift was not measured", allowed=allowed, mend="use an adapter")
    if drift.kl_to_base > most:
        raise DriftError(
            "the student has changed too much on unrelated text",
            got=f"drift {drift.kl_to_base:.3f}",
            allowed=allowed,
            mend="keep more (keep.weight, keep.share); the report shows which kinds of text changed",
        )


def check_most(most: float, *, name: str = "max_drift") -> None:
    """Checks the setting of the gate on drift.

    Args:
        most: The highest drift to accept.
        name: What the user calls it.

    Raises:
        ConfigError: it is not a finite number, or negative.
    """
    _check_finite(most, name, 0.05)
    if most < 0:
        raise ConfigError(f"{name} is negative", got=f"{most:g}", allowed="0 or more")


def _check_finite(value: float, name: str, example: float) -> None:
    if not math.isfinite(value):
        raise ConfigError(
            f"{name} is not a finite number",
            got=str(value),
            allowed=f"a finite number, such as {example:g}",
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
