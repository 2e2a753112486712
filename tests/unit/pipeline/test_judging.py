"""How answers end, and how they differ from the teacher's."""

from __future__ import annotations

import pytest

from instil.evaluation.answers import Answered
from instil.evaluation.fidelity import RowLikelihood
from instil.pipeline.judging import _by_position, _parts, ends, same_start


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


def test_fidelity_is_told_apart_by_turn_and_by_position() -> None:
    rows = [
        RowLikelihood([0.0] * 3, [1.0, 0.5, 0.5], [False, True, True]),
        RowLikelihood([0.0], [3.0], [True]),
        RowLikelihood([0.0] * 70, [0.0] * 70, [True] * 70),
    ]
    turns = {part.part: part for part in _parts(rows, [1, 2, 1])}
    assert list(turns) == ["turn 1", "turn 2"]
    assert turns["turn 1"].kl_to_teacher == pytest.approx(2 / 73)
    assert turns["turn 1"].agreement == pytest.approx(72 / 73)
    assert (turns["turn 2"].kl_to_teacher, turns["turn 2"].tokens) == (3.0, 1)
    places = {part.part: part for part in _by_position(rows)}
    assert list(places) == [
        "token 1",
        "tokens 2 to 4",
        "tokens 5 to 16",
        "tokens 17 to 64",
        "tokens from 65",
    ]
    assert places["token 1"].kl_to_teacher == pytest.approx(4 / 3)
    assert places["tokens 2 to 4"].kl_to_teacher == pytest.approx(0.2)
    assert sum(part.tokens for part in places.values()) == 74
    assert _parts(rows, [None] * 3) == []
    assert _by_position([]) == []
