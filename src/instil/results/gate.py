"""The gates: whether a student is good enough to replace its context, and keeps the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, field_validator

from instil.errors import (
    ConfigError,
    DataFileError,
    GateError,
    did_you_mean,
)
from instil.results.schema import Results
from instil.results.scores import Proportion, Written
from instil.system.settings import Settings

Bound = Literal["upper", "estimate", "lower"]
"""The number that must reach the lowest recovery.

upper or lower: an end of the 95 % interval. estimate: recovery itself.
"""
BOUNDS: tuple[Bound, ...] = get_args(Bound)
DEFAULT = "default"
"""Name of the gate whose limits depend on the run; see `Gate.usual`."""


class Gate(Settings):
    """The limits that a student must keep. Nothing is checked that is not set."""

    min_recovery: float | None = Field(None, description="The lowest recovery.")
    recovery_bound: Bound = Field(
        "upper",
        description="What must reach min_recovery: an end of its 95 % interval (upper or lower), or "
        "the estimate.",
    )
    max_kl_share: float | None = Field(
        None, ge=0, description="The highest KL to the teacher, as a share of zero-shot's."
    )
    max_drift: float | None = Field(
        None, ge=0, description="The highest drift on unrelated text, in nats per token."
    )
    max_leak: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The highest share of answers with a phrase of the context that the teacher does "
        "not write.",
    )
    min_rule: dict[str, float] = Field(
        {}, description="Rule -> the lowest share of answers that obey it. `*` means every rule."
    )
    min_metric: dict[str, float] = Field({}, description="Metric -> its lowest mean.")

    @field_validator("min_rule", "min_metric")
    @classmethod
    def _are_shares(cls, values: dict[str, float]) -> dict[str, float]:
        for name, value in values.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: a number from 0 to 1 is expected")
        return values

    @classmethod
    def of(cls, given: Mapping[str, Any], *, name: str = "gate") -> Gate:
        """Makes a gate of a mapping.

        Args:
            given: The limits.
            name: What the user calls it, for error messages.

        Raises:
            ConfigError: a limit is unknown or wrong. The message names all.
        """
        unknown = [str(key) for key in given if key not in cls.model_fields]
        if unknown:
            raise ConfigError(
                f"{name}: there is no limit {unknown[0]!r}",
                mend=did_you_mean(unknown[0], cls.model_fields),
            )
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            told = [
                f"{'.'.join(map(str, one['loc'])) or 'value'}: {one['msg']} (got {one['input']!r})"
                for one in error.errors()
            ]
            raise ConfigError(f"{name}: {'; '.join(told)}") from None

    @classmethod
    def read(cls, path: Path) -> Gate:
        """Reads a YAML file of limits.

        Raises:
            DataFileError: the file cannot be read, or it is no mapping.
            ConfigError: a limit is unknown or wrong.
        """
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataFileError(
                f"{path}: the gate cannot be read", got=" ".join(str(error).split())
            ) from error
        if not isinstance(given, Mapping) or not given:
            raise DataFileError(
                f"{path}: a gate is a list of limits, such as max_kl_share: 0.15",
                got=type(given).__name__,
                allowed=", ".join(cls.model_fields),
            )
        return cls.of(given, name=str(path))

    @classmethod
    def usual(cls, results: Results) -> Gate:
        """The gate of a run for which none is set.

        It is recovery with gold outputs and the KL without; and drift and leaks where they were
        measured.
        """
        student = results.methods[0]
        written = student.scores[0].written
        return cls(
            min_recovery=None if results.recovery is None else 0.9,
            max_kl_share=0.15 if results.recovery is None else None,
            max_drift=None if student.drift is None else 0.05,
            max_leak=0.0 if written and written.leaks else None,
        )

    def joined(self, other: Gate) -> Gate:
        """This gate with the limits that another one sets."""
        given = {name: getattr(other, name) for name in other.model_fields_set}
        for name in ("min_rule", "min_metric"):
            given[name] = getattr(self, name) | getattr(other, name)
        return self.model_copy(update=given)


def failures(results: Results, gate: Gate) -> list[GateError]:
    """What fails in a run: an error for each limit that is not kept, with its number.

    Args:
        results: Results of a run.
        gate: The limits.
    """
    made: list[GateError] = []
    if gate.min_recovery is not None:
        made += _recovery(results, gate.min_recovery, gate.recovery_bound)
    if gate.max_kl_share is not None:
        made += _kl_share(results, gate.max_kl_share)
    if gate.max_drift is not None:
        made += _drift(results, gate.max_drift)
    written = results.methods[0].scores[0].written
    if gate.max_leak is not None:
        made += _leak(written, gate.max_leak)
    rules, metrics = (written.rules, written.metrics) if written else ({}, {})
    for name, least in _named(gate.min_rule, rules):
        made += _share("rule", name, least, rules)
    for name, least in gate.min_metric.items():
        made += _share("metric", name, least, metrics)
    return made


def check(results: Results, gate: Gate) -> None:
    """Raises an error if a run does not keep a limit. If it fails several, the error names all.

    Args:
        results: Results of a run.
        gate: The limits.

    Raises:
        GateError: the first limit that fails; the others are its notes.
    """
    failed = failures(results, gate)
    for other in failed[1:]:
        failed[0].add_note(f"{type(other).__name__}: {other}")
    if failed:
        raise failed[0]


def _named(limits: Mapping[str, float], rules: Mapping[str, Proportion]) -> list[tuple[str, float]]:
    every = dict.fromkeys(rules, limits["*"]) if "*" in limits else {}
    return [*(every | {name: least for name, least in limits.items() if name != "*"}).items()]


def _recovery(results: Results, least: float, bound: Bound) -> list[GateError]:
    recovery, interval = results.recovery, results.recovery_interval
    allowed = f"{_NAMES[bound]} of at least {least:g}"
    if recovery is None:
        return [
            GateError(
                f"recovery is undefined: {_reason(results)}",
                allowed=allowed,
                mend="use a better context and evaluation rows with outputs, or judge the KL "
                "(max_kl_share), which needs no outputs",
            )
        ]
    if bound == "estimate":
        reached = recovery
    elif interval is None:
        return [
            GateError(
                f"recovery is {recovery:.3f} without an interval: the context's gain over zero-shot "
                "is not clear of chance on these rows",
                allowed=allowed,
                mend="evaluate on more rows, or judge the estimate itself (bound estimate)",
            )
        ]
    else:
        reached = interval.high if bound == "upper" else interval.low
    if reached >= least:
        return []
    spread = f", 95 % interval {interval.low:.3f} to {interval.high:.3f}" if interval else ""
    return [
        GateError(
            "the student is too far below the context that it replaces",
            got=f"recovery {recovery:.3f}{spread}",
            allowed=allowed,
            mend="give more inputs or more steps; the report shows the different answers",
        )
    ]


def _kl_share(results: Results, most: float) -> list[GateError]:
    share, allowed = results.kl_share, f"at most {most:g} of zero-shot's"
    if share is None:
        return [
            GateError(
                "the KL to the teacher has nothing to be compared with",
                allowed=allowed,
                mend="evaluate with the baselines zero_shot and in_context",
            )
        ]
    if share <= most:
        return []
    return [
        GateError(
            "the student's predictions are too far from its teacher's",
            got=f"a KL of {share:.3f} of zero-shot's",
            allowed=allowed,
            mend="give more inputs or more steps",
        )
    ]


def _drift(results: Results, most: float) -> list[GateError]:
    drift, allowed = results.methods[0].drift, f"at most {most:g} nats per token"
    if drift is None:
        return [GateError("drift was not measured", allowed=allowed, mend="use an adapter")]
    if drift.kl_to_base <= most:
        return []
    return [
        GateError(
            "the student has changed too much on unrelated text",
            got=f"drift {drift.kl_to_base:.3f}",
            allowed=allowed,
            mend="keep more (keep.weight, keep.share); the report shows which kinds of text changed",
        )
    ]


def _leak(written: Written | None, most: float) -> list[GateError]:
    found, allowed = written.leaks if written else None, f"at most {most:g} of the answers"
    if found is None:
        return [
            GateError(
                "leaks were not measured",
                allowed=allowed,
                mend="use one context for all rows, and the baseline in_context",
            )
        ]
    if found.share.value <= most:
        return []
    shown = found.phrases[0].text if found.phrases else ""
    return [
        GateError(
            "the student says what only its teacher has read",
            got=f"{found.share.value:.3f} of the answers, such as {shown!r}",
            allowed=allowed,
            mend="give more inputs, or write a context that says less",
        )
    ]


def _share(
    kind: Literal["rule", "metric"], name: str, least: float, known: Mapping[str, Proportion]
) -> list[GateError]:
    if name not in known:
        return [
            GateError(
                f"the {kind} {name!r} was not measured",
                allowed=f"at least {least:g}",
                mend=did_you_mean(name, known) if known else f"name the {kind}s of the run first",
            )
        ]
    found = known[name]
    if found.value >= least:
        return []
    verb = "obey the rule" if kind == "rule" else "do well by the metric"
    return [
        GateError(
            f"too few answers {verb} {name!r}",
            got=f"{found.value:.3f}, 95 % interval {found.low:.3f} to {found.high:.3f}, of {found.n}",
            allowed=f"at least {least:g}",
            mend="see in the report whether the teacher does better; then give more inputs or steps",
        )
    ]


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
