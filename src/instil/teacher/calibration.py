r"""What a model says of labels, put right: calibration of one context's predictions, and the mean over several.

A context tilts a model towards some labels whatever the query (Zhao et al. 2021, arXiv:2102.09690). Dividing by a
reference prediction r takes the tilt out:

$$ \hat p_y \propto p_y / r_y $$

with r the prediction for inputs without content (contextual calibration, the same paper), or the mean prediction over
unlabelled inputs (batch calibration, Zhou et al. 2023, arXiv:2309.17249, eq. 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Inputs without content, as Zhao et al. take them."""


def probabilities(logprobs_RL: Tensor, log_reference_L: Tensor | None = None) -> Tensor:
    """Probabilities of the labels among themselves.

    Args:
        logprobs_RL: Log-probability of each label; their sum may be below 1.
        log_reference_L: Logarithm of what to divide by; None: nothing.

    Returns:
        Shape (R, L); each row sums to 1.
    """
    if log_reference_L is not None:
        logprobs_RL = logprobs_RL - log_reference_L
    return logprobs_RL.softmax(-1)


def log_reference(logprobs_RL: Tensor) -> Tensor:
    """Logarithm of the mean prediction over R inputs, shape (L,); as a logarithm it does not vanish."""
    return logprobs_RL.log_softmax(-1).logsumexp(0) - math.log(len(logprobs_RL))


def average(predictions: Sequence[Tensor]) -> Tensor:
    """The mean of several contexts' probabilities (R, L) of the same rows."""
    return torch.stack(list(predictions)).mean(0)
