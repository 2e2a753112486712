"""Fidelity by turn and by position."""

from __future__ import annotations

import pytest

from instil.evaluation.fidelity import RowLikelihood
from instil.evaluation.parts import by_position, by_turn


def test_fidelity_is_told_apart_by_turn_and_by_position() -> None:
    rows = [
        RowLikelihood([0.0] * 3, [1.0, 0.5, 0.5], [False, True, True]),
        RowLikelihood([0.0], [3.0], [True]),
        RowLikelihood([0.0] * 70, [0.0] * 70, [True] * 70),
    ]
    turns = {part.part: part for part in by_turn(rows, [1, 2, 1])}
    assert list(turns) == ["turn 1", "turn 2"]
    assert turns["turn 1"].kl_to_teacher == pytest.approx(2 / 73)
    assert turns["turn 1"].agreement == pytest.approx(72 / 73)
    assert (turns["turn 2"].kl_to_teacher, turns["turn 2"].tokens) == (3.0, 1)
    places = {part.part: part for part in by_position(rows)}
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
    assert by_turn(rows, [None] * 3) == []
    assert by_position([]) == []
