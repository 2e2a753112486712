r"""The K + 1 outcomes of sparse targets: the kept tokens, and all other tokens as one outcome.

$$ \log q_v = z_v / \tau - \log Z, \qquad
   \log q_{\mathrm{tail}} = \log \sum_{v \notin \mathrm{kept}} e^{z_v / \tau} - \log Z $$

The tail is the sum of its own terms, because 1 - sum(kept) would lose it to rounding. Log Z is
computed from the tail and the kept tokens, so the vocabulary is read once, with one copy of the
logits. Log-probabilities below `LOG_ZERO` are set to `LOG_ZERO` for both models, so outcomes that
neither model finds possible are equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from instil.targets.prediction import LOG_ZERO

if TYPE_CHECKING:
    from instil.targets.prediction import Targets


def teacher_logprobs(targets: Targets) -> Tensor:
    """The teacher's log-probabilities of the kept tokens and the tail, shape (N, K + 1), nats."""
    return torch.cat([targets.logprobs_NK, targets.log_tail_N[:, None]], -1)


def student_logprobs(logits_NV: Tensor, targets: Targets) -> Tensor:
    """The student's log-probabilities of the same outcomes, at the targets' temperature.

    A padding entry of the targets has `LOG_ZERO`, for the student as for the teacher. The token of
    its id is not moved: it is still a kept token, or part of the tail.

    Args:
        logits_NV: The student's logits.
        targets: The teacher's targets for the same N tokens.

    Returns:
        Nats, shape (N, K + 1). The gradient is finite even if the tail is empty.
    """
    outcomes_NJ: Tensor = _Outcomes.apply(  # type: ignore[no-untyped-call]
        logits_NV, targets.ids_NK, targets.kept_NK, targets.temperature
    )
    return outcomes_NJ.clamp(min=LOG_ZERO)


class _Outcomes(torch.autograd.Function):
    r"""Reads the vocabulary a few times, with one copy of the logits, and a second in backward.

    z are the logits over tau, o the outcomes of the tail, m the largest logit of the tail, and G
    the gradients of the outcomes:

    $$ \frac{\partial L}{\partial z_k} = G_k - q_k \sum_j G_j, \qquad
       \frac{\partial L}{\partial z_o} = e^{z_o - m}
       \Big[ \frac{G_{\mathrm{tail}}}{\sum_o e^{z_o - m}} - \frac{e^m}{Z} \sum_j G_j \Big] $$
    """

    @staticmethod
    @override
    def forward(
        ctx: Any, logits_NV: Tensor, ids_NK: Tensor, kept_NK: Tensor | None, temperature: float
    ) -> Tensor:
        # Used instead of minus infinity, which gives NaN if it is subtracted from itself.
        removed = torch.finfo(logits_NV.dtype).min / 2
        inside_NK = logits_NV.gather(-1, ids_NK) / temperature
        less_NK = torch.full_like(inside_NK, removed)
        if kept_NK is not None:
            inside_NK = inside_NK.masked_fill(~kept_NK, removed)
            # Padding adds 0, so it removes nothing, even if its id is kept elsewhere in the row.
            less_NK = less_NK.masked_fill(~kept_NK, 0.0)
        outside_NV = (logits_NV / temperature).scatter_add_(-1, ids_NK, less_NK)
        most_N1 = outside_NV.amax(-1, keepdim=True).clamp(min=removed)
        outside_NV.sub_(most_N1).exp_()
        summed_N1 = outside_NV.sum(-1, keepdim=True).clamp(min=torch.finfo(logits_NV.dtype).tiny)
        outcomes_NJ = torch.cat([inside_NK, most_N1 + summed_N1.log()], -1)
        whole_N1 = outcomes_NJ.logsumexp(-1, keepdim=True)
        outcomes_NJ -= whole_N1
        ctx.save_for_backward(outside_NV, summed_N1, most_N1 - whole_N1, outcomes_NJ, ids_NK)
        ctx.temperature = temperature
        return outcomes_NJ

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outside_NV, summed_N1, most_N1, outcomes_NJ, ids_NK = ctx.saved_tensors
        at_outcomes_NJ = gradients[0] / ctx.temperature
        at_whole_N1 = at_outcomes_NJ.sum(-1, keepdim=True)
        at_inside_NJ = at_outcomes_NJ - outcomes_NJ.exp() * at_whole_N1
        at_tail_N1 = at_outcomes_NJ[:, -1:] / summed_N1 - most_N1.exp() * at_whole_N1
        at_logits_NV = (outside_NV * at_tail_N1).scatter_add_(-1, ids_NK, at_inside_NJ[:, :-1])
        return at_logits_NV, None, None, None
