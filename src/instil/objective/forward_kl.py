r"""Forward KL from the teacher to the student, on the teacher's K likeliest tokens and one outcome for the tail.

$$ L_t = \tau^2 \Big[ \sum_{v \in \mathrm{top}_K} p_v \log \frac{p_v}{q_v}
       + p_{\mathrm{tail}} \log \frac{p_{\mathrm{tail}}}{q_{\mathrm{tail}}} \Big],
   \qquad p_{\mathrm{tail}} = \sum_{v \notin \mathrm{top}_K} p_v $$

with p and q at temperature tau. Both are distributions over the same K + 1 outcomes, so the loss is a true divergence:
never negative, zero only at equality, and equal to the dense one when K is the vocabulary. Dropping the tail instead
makes its optimum a student without a tail (over-confident); renormalising over K leaves its mass free. tau^2 keeps the
size of the gradient (Hinton et al. 2015, arXiv:1503.02531, section 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor

    from instil.targets import Targets


class ForwardKL(BaseModel):
    """KL(teacher || student): the student must cover all that the teacher holds possible."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    needs_targets: ClassVar[bool] = True

    name: Literal["forward_kl"] = "forward_kl"
    temperature: float = Field(1.0, gt=0)

    def __call__(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None = None
    ) -> Tensor:
        """Loss of each completion token.

        Args:
            logits_NV: Student logits that predict each of N completion tokens.
            completion_N: Not used; the targets know which token they belong to.
            targets: The teacher's targets for the same N tokens, at this temperature.

        Returns:
            Nats, shape (N,).

        Raises:
            ValueError: no targets, or targets of another temperature.
        """
        if targets is None or targets.temperature != self.temperature:
            raise ValueError(f"forward_kl needs targets of temperature {self.temperature}")
        logits_NV = logits_NV / self.temperature
        logsumexp_N = logits_NV.logsumexp(-1)
        student_NK = logits_NV.gather(-1, targets.ids_NK) - logsumexp_N[:, None]
        teacher_NK = targets.logprobs_NK
        loss_N = (teacher_NK.exp() * (teacher_NK - student_NK)).sum(-1)
        if targets.ids_NK.shape[-1] < logits_NV.shape[-1]:
            # The tail is summed from its own terms: 1 - sum(top K) would lose it to rounding.
            outside_NV = logits_NV.scatter(-1, targets.ids_NK, float("-inf"))
            student_tail_N = outside_NV.logsumexp(-1) - logsumexp_N
            tail_N = targets.log_tail_N
            loss_N = loss_N + tail_N.exp() * (tail_N - student_tail_N)
        return self.temperature**2 * loss_N
