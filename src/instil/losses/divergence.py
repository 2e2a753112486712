r"""What the divergences share: both models' log-probabilities of the same K + 1 outcomes, and the temperature.

$$ L_t = \tau^2 \, D(p_t, q_t) $$

p is the teacher and q the student, both at temperature tau, over the kept tokens and the tail. These are distributions, so
D is a true divergence: never negative, zero only at equality, and equal to the dense one when K is the vocabulary. (The
forward KL takes draws from the tail, too, and is an estimate then.) Dropping the tail instead makes its optimum a student
without a tail (over-confident); renormalising over K leaves its mass free. tau^2 keeps the size of the gradient (Hinton et
al. 2015, arXiv:1503.02531, section 2).
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
        """Divergence at each completion token, nats, shape (N,); the targets know which token they belong to."""
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
        """What each outcome adds to the divergence.

        Args:
            teacher_NJ: The teacher's log-probabilities of J = K + 1 outcomes, nats.
            student_NJ: The student's.

        Returns:
            Nats, shape (N, J).
        """
