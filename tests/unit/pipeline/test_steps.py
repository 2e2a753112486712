"""What follows from the scores of a cell, before they are written."""

from __future__ import annotations

from collections.abc import Sequence

from tests.finished import method_result, score

from instil.methods import MethodName
from instil.pipeline.steps import Judged
from instil.results.recovery import recovery_interval
from instil.results.schema import Prediction
from instil.results.scores import Interval


def lines(method: MethodName, name: str, right: Sequence[bool | None]) -> list[Prediction]:
    return [
        Prediction(
            set=name,
            row=row,
            method=method,
            input=f"{row}",
            expected=None if correct is None else "x",
            predicted="x",
            correct=correct,
        )
        for row, correct in enumerate(right)
    ]


RIGHT: dict[MethodName, list[bool | None]] = {
    "distillation": [True] * 12 + [None] + [False] * 8,
    "zero_shot": [False] * 12 + [None] + [False] * 8,
    "in_context": [True] * 14 + [None] + [False] * 6,
}


def judged(*methods: MethodName, right: dict[MethodName, list[bool | None]] = RIGHT) -> Judged:
    sets = [score(8), score(8, name="far", domain="out")]
    predictions = [line for method in methods for line in lines(method, "words", right[method])]
    others = [line for method in methods for line in lines(method, "far", [True] * 9)]
    results = [method_result(method, *sets) for method in methods]
    return Judged(results, [*others, *predictions], [])


def test_the_interval_of_recovery_is_of_the_first_set_and_its_graded_rows() -> None:
    right = {**RIGHT, "in_context": [True] * 12 + [None, True, True] + [False] * 6}
    found = judged("distillation", "zero_shot", "in_context", right=right).recovery_interval
    expected = recovery_interval([0] * 20, [1] * 14 + [0] * 6, [1] * 12 + [0] * 8)
    assert expected is not None
    assert found == Interval(low=expected[0], high=expected[1])


def test_there_is_none_without_what_recovery_needs() -> None:
    assert judged("distillation", "zero_shot").recovery_interval is None
    assert judged("distillation", "in_context").recovery_interval is None
    assert judged("in_context", "zero_shot").recovery_interval is None
    bare: dict[MethodName, list[bool | None]] = dict.fromkeys(RIGHT, [None] * 20)
    assert judged("distillation", "zero_shot", "in_context", right=bare).recovery_interval is None
