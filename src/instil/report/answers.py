"""What every cell of a study answered, row by row."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NamedTuple

from instil.report.study import Study


class Answer(NamedTuple):
    """What one cell answered to one evaluation row."""

    input: str
    expected: str
    predicted: str
    confidence: float | None
    written: str | None

    @property
    def right(self) -> bool:
        """Whether the predicted label, or what a written answer comes to, is the gold one."""
        return self.predicted == self.expected


Answers = dict[str, dict[str, dict[int, Answer]]]
"""By cell, set and row."""


def read_answers(study: Study) -> Answers:
    """Reads the predictions of all cells; a text that many cells share is held once."""
    tasks = len({cell.task for cell in study.cells})
    answers: Answers = {}
    for cell in study.cells:
        by_set = answers.setdefault(cell.name, {})
        for line in study.predictions(cell):
            name = line.set if tasks == 1 else f"{cell.task}: {line.set}"
            by_set.setdefault(name, {})[line.row] = Answer(
                sys.intern(line.input),
                sys.intern(line.expected),
                sys.intern(line.predicted),
                line.probabilities.get(line.predicted, 0.0) if line.probabilities else None,
                line.written,
            )
    return answers


def different_rows(answers: Answers, cells: Iterable[str], name: str) -> int:
    """How many different rows of a set some cells answered; 0 where none were stored."""
    return len({a[:2] for cell in cells for a in answers.get(cell, {}).get(name, {}).values()})
