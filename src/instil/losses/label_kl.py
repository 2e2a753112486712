r"""KL between two distributions over labels, mixed with cross-entropy on the gold label.

$$ L = \alpha\, \Big(\tau^2 \sum_{y} p_y \log \frac{p_y}{q_y}
       + m \log \frac{m}{n} + (1 - m) \log \frac{1 - m}{1 - n}\Big)
       + (1 - \alpha) \,(-\log n q_{y^*}) $$

p is the teacher's distribution over the labels with the context, and q the student's without it.
Both come from the verbalizer and are normalised over the labels. m and n are their masses: the
total probability of all labels. y* is the gold label. alpha = 1 is pure distillation and needs no
gold labels. tau applies to p and q, but not to the masses.

This is `over: labels_and_mass`. The student also learns to answer with a label at all, not only
which label is more likely. If the labels and the tail were the outcomes of one KL, m would be a
factor of the labels' part. That part would be small where the teacher's mass is low (Zhao et al.
2022, arXiv:2203.08679). Here m is not such a factor. `over: labels` leaves out m and n. With alpha
= 0 it is pattern-based fine-tuning (Schick and Schuetze 2021, arXiv:2001.07676, eq. 2). `over:
vocabulary` replaces both parts by the KL of the next-token distributions at the positions that
decide the label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self

from pydantic import Field

from instil.losses.base import Loss
from instil.losses.forward_kl import ForwardKL

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from instil.targets.prediction import Targets


class LabelReading(Protocol):
    """Computes label probabilities from logits; see `instil.prompts.labels.LabelTokens`."""

    @property
    def visits(self) -> Tensor:
        """Number of token sequences that go through each of a row's P positions."""

    def cut(self, logits_NV: Tensor) -> Tensor:
        """The logits without the entries that pad the vocabulary."""

    def token_logprobs(self, logits_CV: Tensor, start: int) -> Tensor:
        """What the labels need of a chunk's logits, shape (C, K), nats."""

    def joined(self, logprobs_NK: Tensor) -> Tensor:
        """Log-probability of each label, shape (R, L), nats, from what all chunks gave."""


@dataclass(frozen=True)
class LabelTargets:
    """What is known about the labels of R rows.

    Attributes:
        gold_R: Index of the gold label.
        probs_RL: The teacher's probability of each label, normalised over the labels; None without
            a teacher.
        vocabulary: The teacher's next-token distributions at the R x P positions that decide the
            label; None if the loss is over the labels.
        choices: The labels' tokens; None if the logits come from a classification head, with one
            logit per label.
        mass_R: The teacher's total probability of all labels; None if the loss does not use it.
    """

    gold_R: Tensor
    probs_RL: Tensor | None
    vocabulary: Targets | None
    choices: LabelReading | None
    mass_R: Tensor | None = None

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Joins the targets of several rows."""
        import torch

        first = parts[0]
        probs = [part.probs_RL for part in parts if part.probs_RL is not None]
        mass = [part.mass_R for part in parts if part.mass_R is not None]
        vocabularies = [part.vocabulary for part in parts if part.vocabulary is not None]
        return cls(
            gold_R=torch.cat([part.gold_R for part in parts]),
            probs_RL=torch.cat(probs) if probs else None,
            vocabulary=type(vocabularies[0]).cat(vocabularies) if vocabularies else None,
            choices=first.choices,
            mass_R=torch.cat(mass) if mass else None,
        )

    def to(self, device: torch.device) -> Self:
        """The same targets on another device."""
        return type(self)(
            gold_R=self.gold_R.to(device),
            probs_RL=None if self.probs_RL is None else self.probs_RL.to(device),
            vocabulary=None if self.vocabulary is None else self.vocabulary.to(device),
            choices=self.choices,
            mass_R=None if self.mass_R is None else self.mass_R.to(device),
        )


class LabelKL(Loss):
    """KL(teacher || student) over labels or vocabulary, and cross-entropy on the gold label.

    Over the labels, the KL can include their mass.
    """

    by_position: ClassVar[bool] = False  # a row's terms come from several positions
    needs_logits: ClassVar[bool] = True
    needs_targets: ClassVar[bool] = True
    needs_distribution: ClassVar[bool] = True

    name: Literal["label_kl"] = "label_kl"
    alpha: float = Field(1.0, ge=0, le=1, description="weight of the KL; the rest is cross-entropy")
    over: Literal["labels", "labels_and_mass", "vocabulary"] = "labels_and_mass"
    temperature: float = Field(1.0, gt=0)

    def __call__(self, logits_NV: Tensor, completion_N: Tensor, targets: LabelTargets) -> Tensor:
        """Loss of each row; see `Loss.__call__`.

        Args:
            logits_NV: Student logits at the R x P positions that decide the label; shape (R, L)
                from a classification head.
            completion_N: The tokens at these positions. Not used: the labels are in `targets`.
            targets: Targets of the same R rows.

        Returns:
            Nats, shape (R,).
        """
        return self.of_rows(self.of_positions(logits_NV, 0, targets), targets)

    def of_positions(self, logits_CV: Tensor, start: int, targets: LabelTargets) -> Tensor:
        """What the loss needs of some positions. Their logits are not needed after.

        Args:
            logits_CV: Student logits of a chunk of the R x P positions.
            start: Number of the first of them.
            targets: Targets of all rows.

        Returns:
            Some numbers for each position, first dimension C.
        """
        from torch import cat

        choices = targets.choices
        kept_CK = logits_CV if choices is None else choices.token_logprobs(logits_CV, start)
        if self.alpha == 0 or self.over != "vocabulary":
            return kept_CK
        if targets.vocabulary is None:
            raise ValueError("label_kl over the vocabulary needs next-token targets")
        # The entries that pad the vocabulary are not among the teacher's outcomes, either.
        cut_CV = logits_CV if choices is None else choices.cut(logits_CV)
        kl = ForwardKL(temperature=self.temperature)
        known = targets.vocabulary.part(start, start + len(cut_CV))
        return cat([kl(cut_CV, targets.gold_R, known)[:, None], kept_CK], -1)

    def of_rows(self, kept_NK: Tensor, targets: LabelTargets) -> Tensor:
        """Loss of each row.

        Args:
            kept_NK: What `of_positions` gave for all positions.
            targets: Targets of all rows.

        Returns:
            Nats, shape (R,).
        """
        from torch.nn.functional import cross_entropy

        rows, choices = len(targets.gold_R), targets.choices
        divergence_N = None
        if self.alpha > 0 and self.over == "vocabulary":
            divergence_N, kept_NK = kept_NK[:, 0], kept_NK[:, 1:]
        scores_RL = kept_NK if choices is None else choices.joined(kept_NK)
        loss_R = kept_NK.new_zeros(rows)
        if self.alpha < 1:
            if self.over == "labels" or choices is None:
                gold_R = cross_entropy(scores_RL, targets.gold_R, reduction="none")
            else:
                gold_R = -scores_RL.gather(-1, targets.gold_R[:, None])[:, 0]
            loss_R = loss_R + (1 - self.alpha) * gold_R
        if divergence_N is not None:
            loss_R = loss_R + self.alpha * _mean(divergence_N.reshape(rows, -1), choices)
        elif self.alpha > 0:
            loss_R = loss_R + self.alpha * self._divergence(scores_RL, targets)
        return loss_R

    def _divergence(self, scores_RL: Tensor, targets: LabelTargets) -> Tensor:
        from torch import xlogy

        if targets.probs_RL is None:
            raise ValueError("label_kl with alpha > 0 needs the teacher's label probabilities")
        p_RL = (targets.probs_RL.log() / self.temperature).softmax(-1)
        logq_RL = (scores_RL / self.temperature).log_softmax(-1)
        # xlogy: a probability of 0 adds nothing. A NaN of the student stays NaN, and stops
        # training.
        terms_RL = xlogy(p_RL, p_RL) - p_RL * logq_RL
        loss_R = self.temperature**2 * terms_RL.sum(-1)
        if self.over == "labels_and_mass":
            if targets.mass_R is None:
                raise ValueError("label_kl over labels_and_mass needs the teacher's mass")
            loss_R = loss_R + _mass_kl(targets.mass_R, scores_RL.logsumexp(-1))
        return loss_R


def _mean(loss_RP: Tensor, choices: LabelReading | None) -> Tensor:
    """The mean over all positions of all token sequences. Sequences share some of the positions."""
    if choices is None:
        return loss_RP.mean(-1)
    visits_P = choices.visits.to(loss_RP)
    return (loss_RP * visits_P).sum(-1) / visits_P.sum()


def _mass_kl(mass_R: Tensor, log_mass_R: Tensor) -> Tensor:
    """KL between two masses. The two outcomes are a label, and no label."""
    from torch import finfo, float32, xlogy

    # If the student's mass rounds to 1, the rest is 0 and its logarithm is not finite. Such a row
    # has no gradient of the mass.
    log_mass_R = log_mass_R.clamp(max=-finfo(float32).eps)
    rest_R = 1 - mass_R
    known_R = xlogy(mass_R, mass_R) + xlogy(rest_R, rest_R)
    return known_R - mass_R * log_mass_R - rest_R * (-log_mass_R.expm1()).log()
