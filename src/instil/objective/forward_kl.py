r"""Forward KL from the teacher to the student.

$$ L_t = \tau^2 \Big[ \sum_{v \in \mathrm{top}_K} p_v \log \frac{p_v}{q_v}
       + p_{\mathrm{tail}} \log \frac{p_{\mathrm{tail}}}{q_{\mathrm{tail}}} \Big],
   \qquad p_{\mathrm{tail}} = \sum_{v \notin \mathrm{top}_K} p_v $$

The loss of distillation since Hinton et al. 2015 (arXiv:1503.02531, section 2). See `divergence` for the tail and tau.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from instil.objective.divergence import Divergence

if TYPE_CHECKING:
    from torch import Tensor


class ForwardKL(Divergence):
    """KL(teacher || student): the student must cover all that the teacher holds possible."""

    name: Literal["forward_kl"] = "forward_kl"

    def terms(self, teacher_NJ: Tensor, student_NJ: Tensor) -> Tensor:
        """What each outcome adds, nats, shape (N, J)."""
        return teacher_NJ.exp() * (teacher_NJ - student_NJ)
