"""The gates of a run: the options that end a command with status 3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from instil.errors import ConfigError
from instil.system.disk import from_home

if TYPE_CHECKING:
    from instil.results.gate import Gate
    from instil.results.schema import Results


def gate_of(
    gate: str | None = None,
    *,
    min_recovery: float | None = None,
    recovery_bound: str | None = None,
    max_kl_share: float | None = None,
    max_drift: float | None = None,
    max_leak: float | None = None,
    min_rule: Sequence[str] = (),
    min_metric: Sequence[str] = (),
) -> Gate | None:
    """The limits of the command line, checked before any work.

    Args:
        gate: A YAML file, or `default`, whose limits depend on the run.
        min_recovery: A limit, as all further arguments.
        recovery_bound: What must reach it.
        max_kl_share: A limit.
        max_drift: A limit.
        max_leak: A limit.
        min_rule: Limits as NAME=VALUE.
        min_metric: The same.

    Returns:
        The limits; None for `default` alone.

    Raises:
        ConfigError: an option is wrong, or the bound has no value to reach.
    """
    from instil.results.gate import BOUNDS, DEFAULT, Gate

    given = {
        "min_recovery": min_recovery,
        "recovery_bound": recovery_bound,
        "max_kl_share": max_kl_share,
        "max_drift": max_drift,
        "max_leak": max_leak,
        "min_rule": _pairs("--min-rule", min_rule),
        "min_metric": _pairs("--min-metric", min_metric),
    }
    limits = {name: value for name, value in given.items() if value not in (None, {})}
    for name, value in limits.items():
        option = f"--{name.replace('_', '-')}"
        if name == "recovery_bound":
            if value not in BOUNDS:
                raise ConfigError(f"{option} {value}", allowed=", ".join(BOUNDS))
            if min_recovery is None:
                raise ConfigError(
                    "--recovery-bound has no effect without --min-recovery",
                    got=str(value),
                    mend="add --min-recovery, or leave the option out",
                )
        else:
            Gate.of({name: value}, name=option)
    options = Gate.of(limits)
    if gate == DEFAULT:
        if limits:
            raise ConfigError(
                "--gate default has limits of its own", mend="pass a file, or leave --gate out"
            )
        return None
    return Gate.read(from_home(Path(gate))).joined(options) if gate else options


def check_results(results: Results, gate: Gate | None) -> None:
    """Raises an error if a run does not keep a limit; see `instil.results.gate.check`.

    Args:
        results: Results of the run.
        gate: The limits; None: the default ones.
    """
    from instil.results.gate import Gate, check

    check(results, Gate.usual(results) if gate is None else gate)


def _pairs(option: str, given: Sequence[str]) -> dict[str, float]:
    made = {}
    for text in given:
        name, separator, value = text.rpartition("=")
        try:
            made[name] = float(value)
        except ValueError:
            separator = ""
        if not separator or not name:
            raise ConfigError(f"{option} {text}", allowed="NAME=VALUE, such as greeting=0.95")
    return made
