"""A model's label predictions for a set of rows, and their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instil.methods import MethodName
from instil.models.label_reader import read_labels
from instil.models.load import LanguageModel
from instil.prompts.labels import HEAD, LabelTokens
from instil.results.schema import Prediction
from instil.results.scores import Fidelity, SetScore, SingleContext
from instil.results.statistics import calibration_error, confusion, proportion
from instil.system.progress import Advance
from instil.tasks.split import EvaluationSet


@dataclass(frozen=True)
class Judgement:
    """A model's predictions for one set of rows.

    Attributes:
        probs_RL: Probabilities of the labels, shape (R, L). They sum to 1 per row.
        mass: Mean total probability of all labels before they are scaled to sum to 1. None for a
            classification head.
        singles: Scores of each context alone, if there are several.
        prompt_tokens: Mean length of a prompt, in tokens.
    """

    probs_RL: Tensor
    mass: float | None
    singles: list[SingleContext]
    prompt_tokens: float

    def score(
        self, labels: Sequence[str], held_out: EvaluationSet, *, teacher: Judgement | None
    ) -> SetScore:
        """Returns the scores of the predictions.

        Args:
            labels: Names of the L labels.
            held_out: The rows, with gold labels.
            teacher: Predictions of the teacher for the same rows, to compare with.
        """
        right = right_rows(labels, held_out, self.probs_RL)
        gold = [row.output or "" for row in held_out.rows]
        return SetScore(
            name=held_out.name,
            domain=held_out.domain,
            rows=len(held_out.rows),
            accuracy=proportion(right),
            chance=1 / len(labels),
            majority=max(gold.count(label) for label in labels) / len(gold),
            calibration_error=calibration_error(self.probs_RL.amax(-1).tolist(), right),
            verbalizer_mass=self.mass,
            confusion=confusion(labels, gold, _named(labels, self.probs_RL)),
            fidelity=teacher and _fidelity(teacher.probs_RL, self.probs_RL),
            single_contexts=self.singles,
        )

    def predictions(
        self, labels: Sequence[str], held_out: EvaluationSet, method: MethodName
    ) -> Iterator[Prediction]:
        """Yields one line of `predictions.jsonl` per row.

        Args:
            labels: Names of the L labels.
            held_out: The rows.
            method: Method that made the predictions.
        """
        named = _named(labels, self.probs_RL)
        for number, (row, predicted) in enumerate(zip(held_out.rows, named, strict=True)):
            values = [round(p, 6) for p in self.probs_RL[number].tolist()]
            yield Prediction(
                set=held_out.name,
                row=number,
                input=row.input,
                method=method,
                expected=row.output or "",
                predicted=predicted,
                correct=predicted == row.output,
                probabilities=dict(zip(labels, values, strict=True)),
            )


def label_logprobs(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    tokens: LabelTokens | None,
    *,
    batch_size: int,
    advance: Advance,
) -> Tensor:
    """Returns the log-probability of each label, shape (R, L), in nats.

    The probabilities of a classification head sum to 1 per row. Those of a language model sum to
    less: other tokens have the rest. Each process of a launch reads its share of the prompts.

    Args:
        model: A language model, or a model with a classification head.
        prompts: Full prompts of R rows, in token ids.
        tokens: Tokens of the labels; None for a classification head.
        batch_size: Maximum number of rows per forward pass.
        advance: Is called with the progress of this process.
    """

    def make(chunks: Iterator[Tensor]) -> dict[str, Tensor]:
        if tokens is None:
            logprobs = torch.cat([logits_CV.log_softmax(-1) for logits_CV in chunks])
        else:
            logprobs = tokens.logprobs(chunks)
        return {"logprobs_RL": logprobs.cpu()}

    made = read_labels(
        model,
        prompts,
        HEAD if tokens is None else tokens.branches,
        batch_size=batch_size,
        advance=advance,
        make=make,
    )
    return made["logprobs_RL"]


def right_rows(labels: Sequence[str], held_out: EvaluationSet, probs_RL: Tensor) -> list[bool]:
    """Whether the most likely label of each row is its gold label."""
    named = _named(labels, probs_RL)
    return [label == row.output for label, row in zip(named, held_out.rows, strict=True)]


def _named(labels: Sequence[str], probs_RL: Tensor) -> list[str]:
    return [labels[i] for i in probs_RL.argmax(-1).tolist()]


def _fidelity(teacher_RL: Tensor, student_RL: Tensor) -> Fidelity:
    p, q = teacher_RL.double(), student_RL.double().clamp(min=1e-12)
    kl_RL = torch.special.xlogy(p, p) - p * q.log()
    agree = (p.argmax(-1) == q.argmax(-1)).double()
    return Fidelity(
        kl_to_teacher=max(0.0, float(kl_RL.sum(-1).mean())), agreement=float(agree.mean())
    )
