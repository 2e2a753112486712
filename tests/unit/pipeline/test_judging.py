"""How answers end, and how they differ from the teacher's."""

from __future__ import annotations

import pytest

from instil.evaluation.answers import Answered, ends, same_start


@pytest.mark.parametrize(
    ("teacher", "other", "share"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
        ([1, 2, 3, 4], [1, 2, 9, 4], 0.5),
        ([1, 2, 3, 4], [1, 2], 0.5),
        ([1, 2], [1, 2, 3], 0.5),  # the teacher ends, and the other does not
        ([1], [2], 0.0),
        ([1], [], 0.0),
    ],
)
def test_the_share_before_the_first_difference(
    teacher: list[int], other: list[int], share: float
) -> None:
    assert same_start(teacher, other) == share


def test_ends_are_counted() -> None:
    found = ends(
        [
            Answered("a", [1, 2], finished=True, repeats=False),
            Answered("b", [1] * 6, finished=False, repeats=False),
            Answered("c", [1] * 64, finished=False, repeats=True),
            Answered("d", [1] * 8, finished=True, repeats=False),
        ]
    )
    assert found.tokens_mean == 20
    assert (found.cut.value, found.repeats.value) == (0.5, 0.25)
