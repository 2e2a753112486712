r"""Mean squared difference of raw logits, over the teacher's K likeliest tokens.

$$ L_t = \frac{1}{K} \sum_{v \in \mathrm{top}_K} (z_v - t_v)^2 $$

z are the student's logits and t the teacher's, before any temperature (Ba and Caruana 2014,
arXiv:1312.6184, eq. 1, which uses all classes). The targets may have any temperature tau: the
teacher's logits are computed from them as t = tau (log p + log Z / tau). A constant added to all
logits changes no prediction, but it changes this loss. So the loss suits a student that starts as
its teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from instil.losses.base import LogitLoss

if TYPE_CHECKING:
    from torch import Tensor

    from instil.targets.prediction import Targets


class LogitMSE(LogitLoss):
    """Squared difference of raw logits: the student's scores must equal the teacher's.

    It is not enough that their softmax is equal.
    """

    needs_targets: ClassVar[bool] = True
    temperature: ClassVar[float] = 1.0

    name: Literal["logit_mse"] = "logit_mse"
    top_k: int = Field(256, ge=1, description="number of the teacher's likeliest tokens")

    needs_logits_of_teacher: ClassVar[bool] = True

    @property
    def top_k_needed(self) -> int | None:
        """Number of log-probabilities per token that the targets must hold.

        If a token has fewer, all are compared. If it has more, the others are not used.
        """
        return self.top_k

    def unweighted(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None
    ) -> Tensor:
        """Mean squared difference at each completion token, in squared nats, shape (N,).

        The mean leaves out padding, and tokens of probability 0, whose logits are lost.
        """
        from instil.targets.prediction import LOG_ZERO

        if targets is None:
            raise ValueError("logit_mse needs targets (got none)")
        logprobs_NK = targets.logprobs_NK[:, : self.top_k]
        counted_NK = logprobs_NK > LOG_ZERO
        if targets.kept_NK is not None:
            counted_NK = counted_NK & targets.kept_NK[:, : self.top_k]
        teacher_NK = targets.temperature * (logprobs_NK + targets.logsumexp_N[:, None])
        student_NK = logits_NV.gather(-1, targets.ids_NK[:, : self.top_k])
        # Mask before squaring: a logit of minus infinity would otherwise make the gradient NaN.
        difference_NK = (student_NK - teacher_NK).masked_fill(~counted_NK, 0.0)
        return difference_NK.square().sum(-1) / counted_NK.sum(-1).clamp(min=1)
