"""Every loss of logits, by the same questions."""

from __future__ import annotations

import math

import pytest
import torch
from tests.unit.losses.cases import OBJECTIVES, logits, targets_of, zeros

from instil.losses import CrossEntropy
from instil.losses.base import LogitLoss
from instil.targets.prediction import Targets


def test_cross_entropy_by_hand() -> None:
    student = torch.tensor([[0.25, 0.75]]).log()
    assert CrossEntropy()(student, torch.tensor([0])).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("top_k", [1, 4, 7])
def test_gradients_are_right(objective: LogitLoss, top_k: int) -> None:
    student = logits(3, 7, seed=1).requires_grad_()
    targets = targets_of(logits(3, 7), top_k, objective.temperature)
    tokens = torch.tensor([0, 3, 6])
    assert torch.autograd.gradcheck(lambda s: objective(s, tokens, targets), (student,))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_float32_is_float64_rounded(objective: LogitLoss) -> None:
    teacher, student = logits(50, 300, scale=4.0), logits(50, 300, seed=1, scale=4.0)
    tokens = torch.arange(50)
    exact = objective(student, tokens, targets_of(teacher, 20, objective.temperature))
    stored = Targets.of(teacher.float(), top_k=20, temperature=objective.temperature)
    got = objective(student.float(), tokens, stored)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_the_weight_is_a_factor(objective: LogitLoss) -> None:
    student = logits(3, 7, seed=1)
    targets = targets_of(logits(3, 7), 4, objective.temperature)
    twice = objective.model_copy(update={"weight": 2 * objective.weight})
    torch.testing.assert_close(
        twice(student, zeros(3), targets), 2 * objective(student, zeros(3), targets)
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_no_tokens_give_no_loss_and_a_gradient(objective: LogitLoss) -> None:
    for top_k in (3, 7):
        student = torch.zeros(0, 7, requires_grad=True)
        stored = Targets.of(torch.zeros(0, 7), top_k=top_k, temperature=objective.temperature)
        loss = objective(student, zeros(0), stored)
        assert loss.shape == (0,)
        loss.sum().backward()
        assert student.grad is not None


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_extreme_logits_stay_finite(objective: LogitLoss, top_k: int) -> None:
    teacher = torch.tensor([[1000.0, 0.0, -1000.0, 0.0]])
    student = torch.tensor([[0.0, 50.0, -50.0, 0.0]], requires_grad=True)
    stored = Targets.of(teacher, top_k=top_k, temperature=objective.temperature)
    loss = objective(student, zeros(1), stored)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("top_k", [2, 4, 6])
def test_words_that_neither_model_has_change_nothing(objective: LogitLoss, top_k: int) -> None:
    """A vocabulary that is padded to another size with logits of minus infinity, on both sides."""
    teacher, student = logits(3, 4).float(), logits(3, 4, seed=1).float()
    nothing = torch.full((3, 2), -math.inf)
    wide = torch.cat([student, nothing], -1).requires_grad_()
    given = torch.cat([teacher, nothing], -1)
    stored = Targets.of(given, top_k=top_k, temperature=objective.temperature)
    got = objective(wide, zeros(3), stored)
    got.sum().backward()
    narrow = Targets.of(teacher, top_k=top_k, temperature=objective.temperature)
    torch.testing.assert_close(got, objective(student, zeros(3), narrow))
    assert wide.grad is not None
    assert torch.isfinite(wide.grad).all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_a_student_that_broke_is_not_taken_for_a_perfect_one(objective: LogitLoss) -> None:
    for top_k in (3, 7):
        targets = targets_of(logits(2, 7), top_k, objective.temperature)
        assert objective(logits(2, 7) * math.nan, zeros(2), targets).isnan().all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_what_a_loss_needs_it_says(objective: LogitLoss) -> None:
    assert (objective.needs_logits, objective.needs_hidden_states) == (True, False)
    if objective.needs_targets:
        with pytest.raises(ValueError, match=f"{objective.name} needs targets"):
            objective(logits(1, 4), zeros(1))
    else:
        assert objective(logits(1, 4), zeros(1)).shape == (1,)
