r"""Forward KL from the teacher to the student.

$$ L_t = \tau^2 \Big[ \sum_{v \in \mathrm{top}_K} p_v \log \frac{p_v}{q_v}
       + p_{\mathrm{tail}} \log \frac{p_{\mathrm{tail}}}{q_{\mathrm{tail}}} \Big],
   \qquad p_{\mathrm{tail}} = \sum_{v \notin \mathrm{top}_K} p_v $$

This is the usual loss of distillation since Hinton et al. 2015 (arXiv:1503.02531, section 2). See
`divergence` for the tail and tau. Outcomes drawn from the tail are terms of the sum, as kept
outcomes are. They make the sum too large, and this excess is subtracted: see
`instil.targets.draws`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from instil.losses.divergence import Divergence

if TYPE_CHECKING:
    from torch import Tensor

    from instil.targets.prediction import Targets


class ForwardKL(Divergence):
    """KL(teacher || student): the student must cover all tokens that the teacher finds possible."""

    takes_draws: ClassVar[bool] = True

    name: Literal["forward_kl"] = "forward_kl"

    @override
    def unweighted(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None
    ) -> Tensor:
        """KL at each completion token, nats, shape (N,).

        If outcomes were drawn, it is an estimate, which can be negative.
        """
        loss_N = super().unweighted(logits_NV, completion_N, targets)
        if targets is None or targets.excess_N is None:
            return loss_N
        return loss_N - self.temperature**2 * targets.excess_N

    def terms(self, teacher_NJ: Tensor, student_NJ: Tensor) -> Tensor:
        """The term of each outcome, nats, shape (N, J)."""
        return teacher_NJ.exp() * (teacher_NJ - student_NJ)
