r"""The learning rate of each optimiser step.

Of $n$ steps, $w$ are the warm-up. At step $s$, counted from 0, the learning rate is its highest
value times

$$ (s + 1) / (w + 1) \text{ if } s < w, \text{ else } f((s - w) / (n - w)) $$

with $f(t) = 1 - t$ (linear), $(1 + \cos \pi t) / 2$ (cosine) or 1 (constant). So no step has a
learning rate of 0. The schedules of transformers begin at 0: their first step changes no weight, so
a training of one step would learn nothing.
"""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from instil.recipe.sections import Training


def schedule(optimizer: Optimizer, settings: Training, steps: int) -> LambdaLR:
    """Returns the schedule of an optimiser.

    Args:
        optimizer: The optimiser, with the highest learning rate.
        settings: Optimisation.
        steps: Number of optimiser steps.
    """
    warmup = math.ceil(settings.warmup_share * steps)
    return LambdaLR(optimizer, partial(share, steps=steps, warmup=warmup, falls=settings.schedule))


def share(step: int, *, steps: int, warmup: int, falls: str) -> float:
    """Returns the share of the highest learning rate at a step.

    Args:
        step: Number of the step, counted from 0.
        steps: Number of steps.
        warmup: How many of them are the warm-up.
        falls: How the learning rate falls after the warm-up: linear, cosine or constant.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    falling = max(1, steps - warmup)
    if falls == "linear":
        return max(0.0, (steps - step) / falling)
    if falls == "cosine":
        return 0.5 * (1 + math.cos(math.pi * ((step - warmup) / falling)))
    return 1.0
