"""The learning rate: it never is 0, and every schedule warms up."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.small import train_on, weights
from tests.unit.training.test_trainer import fresh, target_rows
from transformers import get_scheduler

from instil.recipe.sections import Training
from instil.training.schedule import schedule, share


def rates(steps: int, **settings: object) -> list[float]:
    """The learning rate of each step; the highest is 8."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=8.0)
    made = schedule(optimizer, Training.model_validate(settings), steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


def test_it_rises_in_equal_parts_and_falls() -> None:
    linear = rates(8, warmup_share=0.375, schedule="linear")
    assert linear == pytest.approx([2, 4, 6, 8, 6.4, 4.8, 3.2, 1.6])
    cosine = rates(8, warmup_share=0.375, schedule="cosine")
    assert cosine[:4] == pytest.approx([2, 4, 6, 8])
    assert cosine[4:] == pytest.approx([4 * (1 + math.cos(math.pi * n / 5)) for n in range(1, 5)])
    assert rates(8, warmup_share=0.375, schedule="constant") == pytest.approx([2, 4, 6, *[8] * 5])


@pytest.mark.parametrize("falls", ["linear", "cosine", "constant"])
def test_after_the_warm_up_it_is_that_of_transformers(falls: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    usual = get_scheduler(falls, optimizer, num_warmup_steps=3, num_training_steps=20)
    (theirs,) = usual.lr_lambdas  # type: ignore[attr-defined]
    for step in range(3, 20):
        assert share(step, steps=20, warmup=3, falls=falls) == theirs(step)


@pytest.mark.parametrize("falls", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_share", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 60])
def test_no_step_is_wasted(steps: int, warmup_share: float, falls: str) -> None:
    assert min(rates(steps, warmup_share=warmup_share, schedule=falls)) > 0


def test_one_step_learns(model_folders: dict[str, Path]) -> None:
    models = fresh(model_folders)
    before = {name: value.clone() for name, value in weights(models).items()}
    train_on(models, target_rows(models), steps=1)
    assert any(not torch.equal(before[name], value) for name, value in weights(models).items())
