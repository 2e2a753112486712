"""The course of a training: its learning rate, which never is 0, and its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.small import train_on, weights
from tests.unit.training.test_trainer import fresh, target_rows
from transformers import get_scheduler

from instil.recipe.sections import Training
from instil.training.course import EVERY, LEAST_FALL, RECENT, Course


def rates(steps: int, **settings: object) -> list[float]:
    """The learning rate of each step; the highest is 8."""
    course = Course.of(Training.model_validate({"max_steps": steps, **settings}), rows=1)
    return [8 * course.share(step) for step in range(course.end)]


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
    course = Course(fixed=20, most=20, warmup=3, falls=falls)
    for step in range(3, 20):
        assert course.share(step) == theirs(step)


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


def passed(
    curve: Callable[[int], float], rows: int = 200, **settings: object
) -> tuple[Course, list[float]]:
    """The course of a training with these held-out losses, and its learning rates."""
    made = Training.model_validate({"until": "plateau", **settings})
    course, rates, step = Course.of(made, rows, watched=True), [], 0
    course.losses[0] = curve(0)
    while step < course.end:
        rates.append(course.share(step))
        step += 1
        if course.measures(step):
            course.losses[step] = curve(step)
    return course, rates


def learning(pace: float, rest: float = 0.1) -> Callable[[int], float]:
    return lambda step: rest + 2 * math.exp(-step / pace)


@pytest.mark.parametrize("pace", [5, 10, 20])
def test_training_ends_when_the_held_out_loss_no_longer_falls(pace: float) -> None:
    course, rates = passed(learning(pace))
    assert course.ended == "plateau"
    assert course.end == len(rates) < course.most
    highest = [step for step, rate in enumerate(rates) if rate == 1.0]
    flat = highest[-1] - 1  # the first step of the fall has the highest rate, too
    assert rates[highest[-1] :] == sorted(rates[highest[-1] :], reverse=True)
    assert len(rates) - highest[-1] == max(EVERY, round(flat / 3))
    before = EVERY * int((1 - RECENT) * flat / EVERY)
    assert learning(pace)(flat) > (1 - LEAST_FALL) * learning(pace)(before)
    assert min(rates) > 0


def test_one_that_learns_slowly_trains_longer() -> None:
    ends = [passed(learning(pace))[0].end for pace in (5, 20, 40)]
    assert ends == sorted(ends)
    assert ends[0] < ends[2]


@pytest.mark.parametrize("most", [1, 5, 10, 20, 45, 100])
def test_it_ends_at_max_steps_at_the_latest_with_a_low_rate(most: int) -> None:
    course, rates = passed(learning(80, rest=0.0), max_steps=most)
    assert (course.ended, len(rates)) == ("max_steps", most)
    if most > EVERY:
        assert rates[-1] < 0.2


def test_without_a_number_of_steps_there_are_ten_times_the_usual() -> None:
    assert Course.of(Training(until="plateau"), 200, watched=True).most == 600
    assert Course.of(Training(until="plateau"), 3200, watched=True).most == 2000
    assert Course.of(Training(until="plateau", epochs=2), 3200, watched=True).most == 400
    assert Course.of(Training(until="plateau"), 200).most == 60  # nothing is held out


def test_it_ends_when_the_share_is_reached() -> None:
    course, rates = passed(learning(30, rest=0.0), until={"kl_share": 0.25})
    assert course.ended == "kl_share"
    assert len(rates) == 50  # 2 exp(-40 / 30) is 0.26 of 2, and 2 exp(-50 / 30) is 0.19
    assert set(rates[3:]) == {1.0}
    course, _ = passed(learning(10), until={"kl_share": 0.01})
    assert course.ended == "plateau"  # the share is out of reach


def test_a_constant_rate_does_not_fall_before_the_end() -> None:
    course, rates = passed(learning(10), schedule="constant")
    assert course.ended == "plateau"
    assert set(rates[3:]) == {1.0}


def test_a_resumed_course_goes_where_it_would_have_gone() -> None:
    course, rates = passed(learning(10))
    for step in range(0, len(rates), 7):
        resumed = Course.of(Training(until="plateau"), 200, watched=True)
        resumed.losses = {at: loss for at, loss in course.losses.items() if at <= step}
        assert resumed.share(step) == rates[step]
