"""The gates on recovery and on drift."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.finished import method_result, results, score

from instil.errors import ConfigError, DriftError, RecoveryError
from instil.results.gate import BOUNDS, check_drift, check_gate, check_recovery
from instil.results.schema import Results
from instil.results.scores import Drift, Interval


def distilled(low: float | None = 0.7, high: float = 1.05, **more: Any) -> Results:
    """Zero-shot has 2 of 10, in-context 9 and the student 8: recovery is 0.857."""
    return results(
        method_result("distillation", score(8)),
        method_result("zero_shot", score(2)),
        method_result("in_context", score(9)),
        recovery_interval=None if low is None else Interval(low=low, high=high),
        **more,
    )


@pytest.mark.parametrize(
    ("bound", "passes"), [("upper", 1.05), ("estimate", 0.857), ("lower", 0.7)]
)
def test_the_bound_is_what_must_reach_it(bound: Any, passes: float) -> None:
    check_recovery(distilled(), passes, bound)
    with pytest.raises(RecoveryError, match="too far below the context"):
        check_recovery(distilled(), passes + 0.001, bound)


def test_by_default_only_a_student_that_is_clearly_worse_fails() -> None:
    check_recovery(distilled(0.7, 1.05), 0.9)
    with pytest.raises(RecoveryError) as error:
        check_recovery(distilled(0.7, 0.89), 0.9)
    assert str(error.value) == (
        "the student is too far below the context that it replaces; "
        "got: recovery 0.857, 95 % interval 0.700 to 0.890; "
        "allowed: an upper bound of recovery of at least 0.9; "
        "mend: give more inputs or more steps; the report shows the different answers"
    )


@pytest.mark.parametrize("bound", ["upper", "lower"])
def test_without_an_interval_its_bounds_reach_nothing(bound: Any) -> None:
    with pytest.raises(RecoveryError, match=r"0\.857 without an interval: .* not clear of chance"):
        check_recovery(distilled(None), 0.1, bound)
    check_recovery(distilled(None), 0.85, "estimate")


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (
            results(
                method_result("distillation", score(8)),
                method_result("zero_shot", score(9)),
                method_result("in_context", score(9)),
            ),
            "the context gains no accuracy on the evaluation rows",
        ),
        (
            results(
                method_result("distillation", score(None)),
                method_result("zero_shot", score(None)),
                method_result("in_context", score(None)),
            ),
            "the evaluation rows have no outputs",
        ),
        (results(method_result("distillation", score(8))), "has no zero_shot and no in_context"),
        (
            results(method_result("distillation", score(8)), method_result("zero_shot", score(2))),
            "the run has no in_context",
        ),
        (
            results(method_result("in_context", score(8)), method_result("zero_shot", score(2))),
            "the run has no trained student",
        ),
    ],
)
@pytest.mark.parametrize("bound", BOUNDS)
def test_it_says_why_recovery_is_undefined(found: Results, why: str, bound: Any) -> None:
    with pytest.raises(RecoveryError, match=why):
        check_recovery(found, 0.0, bound)


@pytest.mark.parametrize("least", [math.nan, math.inf, -math.inf])
def test_a_gate_at_no_number_is_refused(least: float) -> None:
    with pytest.raises(ConfigError, match="is not a finite number"):
        check_gate(least, "upper")
    with pytest.raises(ConfigError, match="is not a finite number"):
        check_recovery(distilled(), least)


def test_an_unknown_bound_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="unknown bound of recovery 'uper'; mend: did you mean 'upper'"
    ):
        check_gate(0.9, "uper")


def test_a_student_that_changed_too_much_is_refused() -> None:
    student = method_result("distillation", score(8))
    moved = student.model_copy(update={"drift": Drift(kl_to_base=0.05, tokens=100)})
    check_drift(results(moved), 0.05)
    with pytest.raises(DriftError) as error:
        check_drift(results(moved), 0.049)
    assert str(error.value) == (
        "the student has changed too much on unrelated text; got: drift 0.050; "
        "allowed: at most 0.049 nats per token; mend: keep more (keep.weight, keep.share); "
        "the report shows which kinds of text changed"
    )
    with pytest.raises(DriftError, match="not measured"):
        check_drift(results(student.model_copy(update={"drift": None})), 1.0)
    with pytest.raises(ConfigError, match="max_drift is not a finite number"):
        check_drift(results(moved), math.nan)
    with pytest.raises(ConfigError, match=r"max_drift is negative; got: -0\.1"):
        check_drift(results(moved), -0.1)
