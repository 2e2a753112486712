"""What a model says of a set of rows, and what that scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instil.results.cell import CellPrediction, Closeness, SetScore, SingleContext
from instil.results.statistics import calibration_error, confusion, proportion
from instil.tasks.split import EvaluationSet


@dataclass(frozen=True)
class Judgement:
    """What a model says of one set of rows.

    Attributes:
        probs_RL: Probabilities of the labels among themselves.
        mass: Mean probability that all labels have together; None for a classification head.
        singles: Each of several contexts alone.
        prompt_tokens: Mean length of a prompt.
    """

    probs_RL: Tensor
    mass: float | None
    singles: list[SingleContext]
    prompt_tokens: float

    def score(
        self, labels: Sequence[str], one: EvaluationSet, *, teacher: Judgement | None
    ) -> SetScore:
        """Scores it.

        Args:
            labels: Names of the L labels.
            one: The rows, with gold labels.
            teacher: What its teacher says of the same rows.
        """
        right, gold = right_rows(labels, one, self.probs_RL), [row.output or "" for row in one.rows]
        return SetScore(
            name=one.name,
            domain=one.domain,
            accuracy=proportion(right),
            chance=1 / len(labels),
            majority=max(gold.count(label) for label in labels) / len(gold),
            calibration_error=calibration_error(self.probs_RL.amax(-1).tolist(), right),
            verbalizer_mass=self.mass,
            confusion=confusion(labels, gold, _named(labels, self.probs_RL)),
            fidelity=teacher and _fidelity(teacher.probs_RL, self.probs_RL),
            single_contexts=self.singles,
        )

    def predictions(self, labels: Sequence[str], one: EvaluationSet) -> Iterator[CellPrediction]:
        """One line a row."""
        named = _named(labels, self.probs_RL)
        for number, (row, predicted) in enumerate(zip(one.rows, named, strict=True)):
            values = [round(p, 6) for p in self.probs_RL[number].tolist()]
            yield CellPrediction(
                set=one.name,
                row=number,
                input=row.input,
                expected=row.output or "",
                predicted=predicted,
                probabilities=dict(zip(labels, values, strict=True)),
            )


def right_rows(labels: Sequence[str], one: EvaluationSet, probs_RL: Tensor) -> list[bool]:
    """Whether the likeliest label of each row is its gold label."""
    named = _named(labels, probs_RL)
    return [label == row.output for label, row in zip(named, one.rows, strict=True)]


def _named(labels: Sequence[str], probs_RL: Tensor) -> list[str]:
    return [labels[i] for i in probs_RL.argmax(-1).tolist()]


def _fidelity(teacher_RL: Tensor, student_RL: Tensor) -> Closeness:
    p, q = teacher_RL.double(), student_RL.double().clamp(min=1e-12)
    kl_RL = torch.special.xlogy(p, p) - p * q.log()
    agree = (p.argmax(-1) == q.argmax(-1)).double()
    return Closeness(
        kl_to_teacher=max(0.0, float(kl_RL.sum(-1).mean())), agreement=float(agree.mean())
    )
