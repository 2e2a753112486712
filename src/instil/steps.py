"""How many optimiser steps training takes; nothing here needs torch, so that a recipe can be checked without it."""

from __future__ import annotations

import math

from instil import config
from instil.errors import ConfigError
from instil.method import METHODS

DEFAULT_STEPS = 60  # see benchmarks/training_defaults.py; more if one pass over the rows needs more


def total_steps(settings: config.Training, rows: int) -> int:
    """Optimiser steps that the settings come to for that many rows."""
    if settings.max_steps is not None:
        return settings.max_steps
    a_pass = math.ceil(math.ceil(rows / settings.batch_size) / settings.grad_accumulation)
    if settings.epochs is None:
        return max(DEFAULT_STEPS, a_pass)
    return math.ceil(settings.epochs * a_pass)


def check_checkpoints(recipe: config.Recipe, rows: int) -> None:
    """Refuses a checkpoint behind the end of training, where only the number of training rows tells when that is.

    Raises:
        ConfigError: names the step and the last one.
    """
    at_steps, learns = recipe.evaluation.at_steps, METHODS[recipe.method].learns
    if learns is None or not isinstance(at_steps, tuple):
        return
    learnt = rows * (recipe.teacher.samples if learns == "targets" else 1)
    last = total_steps(recipe.training, learnt)
    if max(at_steps) > last:
        raise ConfigError(
            "a student cannot be judged after its training has ended",
            got=f"evaluation.at_steps: {max(at_steps)}, with {last} steps for {learnt} completions",
            allowed=f"steps from 1 to {last}",
            mend="leave it out, or raise training.epochs or training.max_steps",
        )
