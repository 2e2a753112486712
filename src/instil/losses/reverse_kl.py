r"""Reverse KL: from the student to the teacher.

$$ L_t = \tau^2 \Big[ \sum_{v \in \mathrm{top}_K} q_v \log \frac{q_v}{p_v}
       + q_{\mathrm{tail}} \log \frac{q_{\mathrm{tail}}}{p_{\mathrm{tail}}} \Big] $$

Gu et al. 2023 (MiniLLM, arXiv:2306.08543, eq. 1), here at each token of given completions instead
of samples of the student. See `divergence` for the tail and tau. Where the teacher's probability is
0, the true value is infinite. Here `LOG_ZERO` replaces log 0, so the value is finite but large.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from instil.losses.divergence import Divergence

if TYPE_CHECKING:
    from torch import Tensor


class ReverseKL(Divergence):
    """KL(student || teacher): the student may omit tokens of the teacher, but not add others."""

    name: Literal["reverse_kl"] = "reverse_kl"

    def terms(self, teacher_NJ: Tensor, student_NJ: Tensor) -> Tensor:
        """The term of each outcome, nats, shape (N, J)."""
        return student_NJ.exp() * (student_NJ - teacher_NJ)
