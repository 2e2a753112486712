r"""Generalised Jensen-Shannon divergence between the teacher and the student.

$$ L_t = \tau^2 \big[ \beta\, \mathrm{KL}(p \,\|\, m) + (1 - \beta)\, \mathrm{KL}(q \,\|\, m) \big],
   \qquad m = \beta p + (1 - \beta) q $$

p is the teacher and q the student (Agarwal et al. 2023, GKD, arXiv:2306.13649, eq. 1). With
beta = 0.5 it is symmetric. It is bounded by the entropy of beta, which is at most tau^2 log 2, so
that no single token can dominate a batch.

For 0 < beta < 1, beta has the same meaning as in TRL's `GKDTrainer.generalized_jsd_loss`. The value
is also the same, except for tau^2, which TRL does not apply. For beta = 0 and beta = 1 the formula
gives 0. Divided by beta, it tends to the forward KL as beta goes to 0. Divided by 1 - beta, it
tends to the reverse KL as beta goes to 1. For beta = 0 and beta = 1, TRL uses these KLs without the
division. Here they are separate losses, `forward_kl` and `reverse_kl`, and beta is strictly between
0 and 1.
"""

from __future__ import annotations

from math import log, log1p
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from instil.losses.divergence import Divergence

if TYPE_CHECKING:
    from torch import Tensor


class JensenShannon(Divergence):
    """Mean divergence of teacher and student from their mixture; bounded, between the two KLs."""

    name: Literal["jensen_shannon"] = "jensen_shannon"
    beta: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="the teacher's share of the mixture; if it is small, similar to forward_kl",
    )

    def terms(self, teacher_NJ: Tensor, student_NJ: Tensor) -> Tensor:
        """The term of each outcome, nats, shape (N, J)."""
        from torch import logaddexp

        mixture_NJ = logaddexp(teacher_NJ + log(self.beta), student_NJ + log1p(-self.beta))
        return self.beta * teacher_NJ.exp() * (teacher_NJ - mixture_NJ) + (
            1 - self.beta
        ) * student_NJ.exp() * (student_NJ - mixture_NJ)
