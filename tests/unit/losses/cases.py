"""What the tests of losses compare: float64 logits, targets of them, and the losses themselves."""

from __future__ import annotations

from typing import Any

import torch

from instil.losses import CrossEntropy, ForwardKL, JensenShannon, LogitMSE, ReverseKL
from instil.targets.prediction import LOG_ZERO, Targets

DIVERGENCES: list[type[Any]] = [ForwardKL, ReverseKL, JensenShannon]
OBJECTIVES = [
    CrossEntropy(),
    CrossEntropy(weight=0.5),
    *[loss(temperature=t) for loss in DIVERGENCES for t in (1.0, 2.0)],
    JensenShannon(beta=0.1, weight=3.0),
    LogitMSE(),
    LogitMSE(top_k=2),
]


def logits(n: int, v: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return (
        torch.randn(n, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        * scale
    )


def targets_of(teacher: torch.Tensor, top_k: int, temperature: float = 1.0) -> Targets:
    """As `Targets.of`, in float64."""
    scaled = teacher / temperature
    logsumexp = scaled.logsumexp(-1)
    values, ids = scaled.topk(top_k)
    tail = scaled.scatter(-1, ids, float("-inf")).logsumexp(-1) - logsumexp
    return Targets(
        ids, values - logsumexp[:, None], tail.clamp(min=LOG_ZERO), logsumexp, temperature
    )


def outcomes(scores: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Probabilities of the kept tokens and the tail in the plainest way, row by row."""
    rows = []
    for n, p in enumerate((scores / targets.temperature).softmax(-1)):
        kept = targets.ids_NK[n]
        if targets.kept_NK is not None:
            kept = kept[targets.kept_NK[n]]
        others = [v for v in range(len(p)) if v not in kept.tolist()]
        rows.append(torch.cat([p[kept], p[others].sum()[None]]))
    return torch.stack(rows)


def zeros(n: int) -> torch.Tensor:
    """Ids of completion tokens, for losses that do not look at them."""
    return torch.zeros(n).long()
