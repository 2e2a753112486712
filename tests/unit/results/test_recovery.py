"""Recovery and its interval."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from instil.results.recovery import recovery, recovery_interval


def test_recovery() -> None:
    assert recovery(zero_shot=0.1, in_context=0.9, student=0.5) == pytest.approx(0.5)
    assert recovery(zero_shot=0.5, in_context=0.5, student=0.9) is None
    assert recovery(zero_shot=0.5, in_context=0.4, student=0.9) is None


def bits(*counts: tuple[int, str]) -> list[list[float]]:
    """Rows as (number, outcomes), for example (40, "110"): right, right, wrong."""
    rows = [outcome for number, outcome in counts for _ in range(number)]
    return [[float(outcome[method]) for outcome in rows] for method in range(3)]


def test_the_interval_holds_the_estimate() -> None:
    answers = bits((40, "111"), (40, "011"), (5, "010"), (3, "001"), (12, "000"))
    found = recovery_interval(*answers)
    assert found is not None
    low, high = found
    assert low < 43 / 45 < high
    # The standard error by the delta method, over the same rows.
    zero, context, student = map(np.array, answers)
    rest = (student - zero) - 43 / 45 * (context - zero)
    error = rest.std() / 45 * 10
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_more_rows_make_it_narrower() -> None:
    few, many = (
        recovery_interval(*bits((4 * n, "111"), (4 * n, "011"), (n, "010"), (n, "000")))
        for n in (5, 50)
    )
    assert few is not None
    assert many is not None
    assert many[1] - many[0] < (few[1] - few[0]) / 2


def test_the_order_of_the_rows_does_not_matter() -> None:
    answers = bits((4, "111"), (9, "011"), (1, "010"), (2, "000"))
    backwards = [list(reversed(right)) for right in answers]
    assert recovery_interval(*answers) == recovery_interval(*backwards)


def test_pairs_count() -> None:
    """The same accuracies: a student that is right on other rows is less certain."""
    same = recovery_interval(*bits((45, "011"), (5, "010"), (50, "000")))
    other = recovery_interval(*bits((25, "011"), (25, "010"), (20, "001"), (30, "000")))
    assert same is not None
    assert other is not None
    assert other[0] < same[0]
    assert other[1] > same[1]


def test_a_student_that_lost_no_row_could_lose_one() -> None:
    found = recovery_interval(*bits((20, "011"), (20, "000")))
    assert found is not None
    assert 0.7 < found[0] < 1 < found[1] < 1.3


@pytest.mark.parametrize(
    "answers",
    [
        bits(),
        bits((5, "011"), (5, "101")),  # the context gains nothing
        bits((5, "101"), (5, "000")),  # it loses
        bits((2, "011"), (98, "000")),  # it gains two rows of a hundred
        bits((1, "011")),
    ],
)
def test_without_a_clear_gain_there_is_no_interval(answers: list[list[float]]) -> None:
    assert recovery_interval(*answers) is None


def test_rows_of_several_seeds_count_once() -> None:
    """Three seeds with equal answers are no more evidence than one."""
    answers = bits((10, "111"), (20, "011"), (4, "010"), (6, "000"))
    one = recovery_interval(*answers, unseen=0)
    three = recovery_interval(*([3 * right for right in method] for method in answers), unseen=0)
    assert one is not None
    assert three == pytest.approx(one)


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from instil.results.recovery import recovery_interval as r;"
        "print(r([0] * 9, [1] * 9, [1] * 9)); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(")
