r"""The common part of the divergences: the K + 1 outcomes of both models, and the temperature.

$$ L_t = \tau^2 \, D(p_t, q_t) $$

p is the teacher and q the student, both at temperature tau. The outcomes are the kept tokens and
the tail. Both models give distributions over them, so D is a true divergence: it is never negative,
it is zero only if they are equal, and it equals the dense divergence if K is the size of the
vocabulary. (The forward KL also takes outcomes drawn from the tail. Its value is then an estimate.)
Without the tail, the optimum would be a student without a tail, which is over-confident.
Renormalised over K tokens, the loss would not determine the student's tail. tau^2 preserves the
size of the gradient (Hinton et al. 2015, arXiv:1503.02531, section 2).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from instil.losses.base import LogitLoss

if TYPE_CHECKING:
    from torch import Tensor

    from instil.targets.prediction import Targets


class Divergence(LogitLoss):
    """A divergence between the teacher's and the student's prediction."""

    needs_targets: ClassVar[bool] = True
    needs_distribution: ClassVar[bool] = True

    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)

    def unweighted(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None
    ) -> Tensor:
        """Divergence at each completion token, nats, shape (N,). `completion_N` is not used."""
        from instil.losses.outcomes import student_logprobs, teacher_logprobs

        if targets is None or targets.temperature != self.temperature:
            got = "none" if targets is None else f"targets of temperature {targets.temperature}"
            raise ValueError(
                f"{self.name} needs targets of temperature {self.temperature} (got {got})"
            )
        terms_NJ = self.terms(teacher_logprobs(targets), student_logprobs(logits_NV, targets))
        return self.temperature**2 * terms_NJ.sum(-1)

    @abstractmethod
    def terms(self, teacher_NJ: Tensor, student_NJ: Tensor) -> Tensor:
        """The term that each outcome adds to the divergence.

        Args:
            teacher_NJ: The teacher's log-probabilities of J = K + 1 outcomes, nats.
            student_NJ: The student's.

        Returns:
            Nats, shape (N, J).
        """
