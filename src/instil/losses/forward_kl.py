r"""Forward KL from the teacher to the student.

$$ L_t = \tau^2 \Big[ \sum_{v \in \mathrm{top}_K} p_v \log \frac{p_v}{q_v}
       + p_{\mathrm{tail}} \log \frac{p_{\mathrm{tail}}}{q_{\mathrm{tail}}} \Big],
   \qquad p_{\mathrm{tail}} = \sum_{v \notin \mathrm{top}_K} p_v $$

The loss of distillation since Hinton et al. 2015 (arXiv:1503.02531, section 2). See `divergence` for the tail and tau. Outcomes
that were drawn from the tail stand in the sum like those that are kept, and what they make it too large by is taken off: see
`sparse`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from instil.losses.divergence import Divergence

if TYPE_CHECKING:
    from torch import Tensor

    from instil.targets.prediction import Targets


class ForwardKL(Divergence):
    """KL(teacher || student): the student must cover all that the teacher holds possible."""

    takes_draws: ClassVar[bool] = True

    name: Literal["forward_kl"] = "forward_kl"

    @override
    def unweighted(
        self, logits_NV: Tensor, completion_N: Tensor, targets: Targets | None
    ) -> Tensor:
        """KL at each completion token, nats, shape (N,); where outcomes were drawn, an estimate that may be below 0."""
        loss_N = super().unweighted(logits_NV, completion_N, targets)
        if targets is None or targets.excess_N is None:
            return loss_N
        return loss_N - self.temperature**2 * targets.excess_N

    def terms(self, teacher_NJ: Tensor, student_NJ: Tensor) -> Tensor:
        """What each outcome adds, nats, shape (N, J)."""
        return teacher_NJ.exp() * (teacher_NJ - student_NJ)
