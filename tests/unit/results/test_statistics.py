from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.results.statistics import (
    calibration_error,
    confusion,
    deviation,
    holm,
    mcnemar,
    pooled,
    predicted_shares,
    proportion,
    reliability,
    t_interval,
    wilson,
)


def test_wilson_against_a_published_value() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263 gives 0.2553 to 0.3662.
    score = proportion([True] * 81 + [False] * 182)
    assert score.low == pytest.approx(0.2553, abs=5e-5)
    assert score.high == pytest.approx(0.3662, abs=5e-5)


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_the_interval_holds_the_value_and_stays_in_range(outcomes: list[bool]) -> None:
    score = proportion(outcomes)
    assert 0 <= score.low <= score.value <= score.high <= 1
    assert score.n == len(outcomes)


def test_t_interval_over_three_seeds() -> None:
    # mean 0.6, deviation 0.1, t(0.975, 2) = 4.302653: 4.302653 * 0.1 / sqrt(3) = 0.248414
    assert t_interval([0.5, 0.6, 0.7]) == pytest.approx((0.351586, 0.848414), abs=1e-6)
    assert deviation([0.5, 0.6, 0.7]) == pytest.approx(0.1)


def test_seeds_that_agree_have_no_t_interval() -> None:
    assert t_interval([0.5, 0.5, 0.5]) is None
    assert t_interval([0.5]) is None
    assert deviation([0.5]) is None


def test_wilson_by_its_formula() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.403832, 0.596168), abs=1e-6)
    assert wilson(0.0, 20)[0] == 0.0
    assert wilson(1.0, 20)[1] == 1.0


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)
    assert mcnemar(0, 10) == pytest.approx(2 / 2**10)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 0) == 1.0


def test_holm_in_the_order_given() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_reliability_leaves_empty_bins_out() -> None:
    bins = reliability([(0.55, True), (0.57, False), (1.0, True), (0.95, True)])
    assert bins == [(pytest.approx(0.56), 0.5, 2), (pytest.approx(0.975), 1.0, 2)]


def test_confusions_are_summed_and_shared_out() -> None:
    one = {"a": {"a": 3, "b": 1}, "b": {"a": 2, "b": 2}}
    total = pooled([one, {"a": {"a": 0, "b": 4}, "b": {"a": 0, "b": 4}}])
    assert total == {"a": {"a": 3, "b": 5}, "b": {"a": 2, "b": 6}}
    assert predicted_shares(total) == {"a": 5 / 16, "b": 11 / 16}
    assert predicted_shares({}) == {}


def test_calibration_error_by_hand() -> None:
    # bins 0.9-1 (0.95, one of two right) and 0.6-0.7 (0.65, right): (2 * 0.45 + 1 * 0.35) / 3
    assert calibration_error([0.95, 0.95, 0.65], [True, False, True]) == pytest.approx(1.25 / 3)
    assert calibration_error([1.0, 1.0], [True, True]) == 0


def test_confusion_names_every_label() -> None:
    table = confusion(["a", "b", "c"], ["a", "a", "b"], ["a", "b", "b"])
    assert table == {
        "a": {"a": 1, "b": 1, "c": 0},
        "b": {"a": 0, "b": 1, "c": 0},
        "c": {"a": 0, "b": 0, "c": 0},
    }
