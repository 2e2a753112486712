"""The gates: recovery, KL, drift, leaks, rules and metrics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.finished import method_result, results, score

from instil.errors import ConfigError, DataFileError, GateError
from instil.results.gate import BOUNDS, Gate, check, failures
from instil.results.schema import Results
from instil.results.scores import Drift, Ends, Interval, LeakedPhrase, Leaks, Written
from instil.results.statistics import proportion


def distilled(low: float | None = 0.7, high: float = 1.05, **more: Any) -> Results:
    """Zero-shot has 2 of 10, in-context 9 and the student 8: recovery is 0.857."""
    return results(
        method_result("distillation", score(8, kl=0.2), drift=0.01),
        method_result("zero_shot", score(2, kl=1.0)),
        method_result("in_context", score(9)),
        recovery_interval=None if low is None else Interval(low=low, high=high),
        **more,
    )


def said(leaked: int = 0, greeting: int = 10, **metrics: int) -> Results:
    """A run without gold outputs: rows with a leak, that obey a rule, and the values of metrics."""

    def shares(of: dict[str, int]) -> dict[str, Any]:
        return {name: proportion([n < count for n in range(10)]) for name, count in of.items()}

    none = proportion([False] * 10)
    phrases = [LeakedPhrase(text="the examples above", student=leaked, teacher=0)]
    written = Written(
        ends=Ends(tokens_mean=9.0, cut=none, repeats=none),
        metrics=shares(metrics),
        rules=shares({"greeting": greeting, "short": 9}),
        leaks=Leaks(
            share=proportion([n < leaked for n in range(10)]),
            phrases=phrases if leaked else [],
            verbatim=none,
            verbatim_teacher=none,
        ),
    )
    student = score(None, kl=0.2).model_copy(update={"written": written})
    return results(
        method_result("distillation", student, drift=0.01),
        method_result("zero_shot", score(None, kl=1.0)),
        method_result("in_context", score(None)),
    )


@pytest.mark.parametrize(
    ("bound", "passes"), [("upper", 1.05), ("estimate", 0.857), ("lower", 0.7)]
)
def test_the_bound_is_what_must_reach_it(bound: Any, passes: float) -> None:
    check(distilled(), Gate(min_recovery=passes, recovery_bound=bound))
    with pytest.raises(GateError, match="too far below the context"):
        check(distilled(), Gate(min_recovery=passes + 0.001, recovery_bound=bound))


def test_by_default_only_a_student_that_is_clearly_worse_fails() -> None:
    check(distilled(0.7, 1.05), Gate(min_recovery=0.9))
    with pytest.raises(GateError) as error:
        check(distilled(0.7, 0.89), Gate(min_recovery=0.9))
    assert str(error.value) == (
        "the student is too far below the context that it replaces; "
        "got: recovery 0.857, 95 % interval 0.700 to 0.890; "
        "allowed: an upper bound of recovery of at least 0.9; "
        "mend: give more inputs or more steps; the report shows the different answers"
    )


@pytest.mark.parametrize("bound", ["upper", "lower"])
def test_without_an_interval_its_bounds_reach_nothing(bound: Any) -> None:
    with pytest.raises(GateError, match=r"0\.857 without an interval: .* not clear of chance"):
        check(distilled(None), Gate(min_recovery=0.1, recovery_bound=bound))
    check(distilled(None), Gate(min_recovery=0.85, recovery_bound="estimate"))


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
    with pytest.raises(GateError, match=why):
        check(found, Gate(min_recovery=0.0, recovery_bound=bound))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_recovery": math.nan}, "gate: min_recovery: .*finite number.*got nan"),
        ({"min_recovery": -math.inf}, "gate: min_recovery: .*finite number"),
        ({"max_drift": -0.1}, r"gate: max_drift: .*greater than or equal to 0 \(got -0.1\)"),
        ({"max_leak": 2}, "gate: max_leak: .*less than or equal to 1"),
        ({"recovery_bound": "uper"}, "gate: recovery_bound: .*'upper'.*got 'uper'"),
        ({"min_rule": {"greeting": 95}}, "greeting: a number from 0 to 1"),
        ({"min_rule": 0.9}, "gate: min_rule"),
        ({"max_kl": 0.1}, "there is no limit 'max_kl'; mend: did you mean 'max_leak'"),
        ({"max_kl_share": "few"}, "gate: max_kl_share: .*valid number"),
    ],
)
def test_a_wrong_limit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Gate.of(given)


def test_a_student_that_changed_too_much_is_refused() -> None:
    student = method_result("distillation", score(8))
    moved = results(student.model_copy(update={"drift": Drift(kl_to_base=0.05, tokens=100)}))
    check(moved, Gate(max_drift=0.05))
    with pytest.raises(GateError) as error:
        check(moved, Gate(max_drift=0.049))
    assert str(error.value) == (
        "the student has changed too much on unrelated text; got: drift 0.050; "
        "allowed: at most 0.049 nats per token; mend: keep more (keep.weight, keep.share); "
        "the report shows which kinds of text changed"
    )
    with pytest.raises(GateError, match="not measured"):
        check(results(student), Gate(max_drift=1.0))


def test_the_kl_needs_no_outputs() -> None:
    assert said().kl_share == pytest.approx(0.2)
    check(said(), Gate(max_kl_share=0.2))
    with pytest.raises(GateError, match=r"a KL of 0\.200 of zero-shot\'s; allowed: at most 0\.19"):
        check(said(), Gate(max_kl_share=0.19))
    with pytest.raises(GateError, match="nothing to be compared with"):
        check(results(method_result("distillation", score(8))), Gate(max_kl_share=1.0))


def test_leaks_are_refused() -> None:
    check(said(), Gate(max_leak=0.0))
    check(said(leaked=3), Gate(max_leak=0.3))
    with pytest.raises(GateError, match=r"got: 0\.300 of the answers, such as .the examples above"):
        check(said(leaked=3), Gate(max_leak=0.29))
    with pytest.raises(GateError, match="leaks were not measured"):
        check(distilled(), Gate(max_leak=0.0))


def test_rules_and_metrics_have_limits_of_their_own() -> None:
    check(
        said(greeting=8, token_f1=7), Gate(min_rule={"greeting": 0.8}, min_metric={"token_f1": 0.7})
    )
    with pytest.raises(
        GateError, match=r"obey the rule .greeting.; got: 0\.800, 95 % interval .* of 10"
    ):
        check(said(greeting=8), Gate(min_rule={"greeting": 0.81}))
    with pytest.raises(GateError, match=r"do well by the metric .token_f1.; got: 0\.700"):
        check(said(token_f1=7), Gate(min_metric={"token_f1": 0.8}))
    with pytest.raises(
        GateError, match=r"the rule .greting. was not measured.*did you mean .greeting."
    ):
        check(said(), Gate(min_rule={"greting": 0.5}))
    with pytest.raises(GateError, match=r"the metric .chrf. was not measured"):
        check(said(), Gate(min_metric={"chrf": 0.5}))


def test_a_star_means_every_rule_that_is_not_named() -> None:
    check(said(greeting=5), Gate(min_rule={"*": 0.9, "greeting": 0.5}))
    told = failures(said(greeting=5), Gate(min_rule={"*": 0.95}))
    assert [error.got[:5] for error in told] == ["0.500", "0.900"]


def test_all_limits_that_fail_are_named() -> None:
    gate = Gate(max_kl_share=0.1, max_drift=0.001, max_leak=0.0, min_rule={"greeting": 1.0})
    with pytest.raises(GateError, match="too far from its teacher") as error:
        check(said(leaked=2, greeting=9), gate)
    assert [note.partition(":")[0] for note in error.value.__notes__] == [
        "GateError",
        "GateError",
        "GateError",
    ]


def test_the_default_depends_on_what_is_known() -> None:
    assert Gate.usual(distilled()) == Gate(min_recovery=0.9, max_drift=0.05)  # no leaks measured
    assert Gate.usual(said()) == Gate(max_kl_share=0.15, max_drift=0.05, max_leak=0.0)
    assert [error.got[:10] for error in failures(said(), Gate.usual(said()))] == ["a KL of 0."]


def test_a_gate_is_read_from_a_file_and_joined(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("max_drift: 0.05\nmin_rule: {greeting: 0.9, short: 0.8}\n")
    gate = Gate.read(path)
    assert gate == Gate(max_drift=0.05, min_rule={"greeting": 0.9, "short": 0.8})
    joined = gate.joined(Gate(max_leak=0.1, min_rule={"short": 0.7}))
    assert joined == Gate(max_drift=0.05, max_leak=0.1, min_rule={"greeting": 0.9, "short": 0.7})
    path.write_text("- max_drift")
    with pytest.raises(DataFileError, match="a gate is a list of limits"):
        Gate.read(path)
    path.write_text("max_drift: [")
    with pytest.raises(DataFileError, match="cannot be read"):
        Gate.read(path)
    with pytest.raises(DataFileError, match="cannot be read"):
        Gate.read(tmp_path / "none.yaml")
