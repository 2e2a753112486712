from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.metrics import exact_match, proportion, recovery


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


def test_recovery() -> None:
    assert recovery(zero_shot=0.1, in_context=0.9, distilled=0.5) == pytest.approx(0.5)
    assert recovery(zero_shot=0.5, in_context=0.5, distilled=0.9) is None
    assert recovery(zero_shot=0.5, in_context=0.4, distilled=0.9) is None


def test_exact_match_minds_case_but_not_outer_space() -> None:
    assert exact_match(" Paris\n", "Paris")
    assert not exact_match("paris", "Paris")
