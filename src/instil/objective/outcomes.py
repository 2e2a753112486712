r"""The K + 1 outcomes that sparse targets tell apart: the kept tokens, and all others as one.

$$ \log q_v = z_v / \tau - \log Z, \qquad
   \log q_{\mathrm{tail}} = \log \sum_{v \notin \mathrm{kept}} e^{z_v / \tau} - \log Z $$

The tail is summed from its own terms: 1 - sum(kept) would lose it to rounding. Log Z is put together from the tail and the
kept tokens, so the vocabulary is gone through once, with one copy of the logits. Log-probabilities below `LOG_ZERO` are
`LOG_ZERO`, on both sides: outcomes that neither model holds possible are equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from instil.targets import Targets

LOG_ZERO = -1e4
"""Stands for the log of a probability of 0: its exp is 0, and 0 times it is 0 and not NaN."""


def teacher_logprobs(targets: Targets) -> Tensor:
    """The teacher's log-probabilities of the kept tokens and of the tail, shape (N, K + 1), nats."""
    import torch

    return torch.cat([targets.logprobs_NK, targets.log_tail_N[:, None]], -1)


def student_logprobs(logits_NV: Tensor, targets: Targets) -> Tensor:
    """The student's log-probabilities of the same outcomes, at the targets' temperature.

    An entry of the targets that is padding has `LOG_ZERO`, as the teacher's has, and its token stays where it is: among
    the kept ones or in the tail.

    Args:
        logits_NV: The student's logits.
        targets: The teacher's targets for the same N tokens.

    Returns:
        Nats, shape (N, K + 1). Its gradient is finite also where the tail is empty.
    """
    import torch

    # Stands for minus infinity, whose log-sum-exp over nothing else would have the gradient NaN.
    removed = torch.finfo(logits_NV.dtype).min / 2
    ids_NK, kept_NK = targets.ids_NK, targets.kept_NK
    kept_logits_NK = logits_NV.gather(-1, ids_NK) / targets.temperature
    if kept_NK is not None:
        kept_logits_NK = kept_logits_NK.masked_fill(~kept_NK, removed)
    kept_N = kept_logits_NK.logsumexp(-1)
    if kept_NK is None and ids_NK.shape[-1] == logits_NV.shape[-1]:
        tail_N, whole_N = torch.full_like(kept_N, removed), kept_N
    else:
        # Padding adds 0, so it removes nothing, even if its id is kept elsewhere in the row.
        less_NK = torch.full_like(kept_logits_NK, removed)
        if kept_NK is not None:
            less_NK = less_NK.masked_fill(~kept_NK, 0.0)
        outside_NV = (logits_NV / targets.temperature).scatter_add_(-1, ids_NK, less_NK)
        tail_N = outside_NV.logsumexp(-1)
        whole_N = torch.logaddexp(kept_N, tail_N)
    outcomes_NJ = torch.cat([kept_logits_NK, tail_N[:, None]], -1)
    return (outcomes_NJ - whole_N[:, None]).clamp(min=LOG_ZERO)
