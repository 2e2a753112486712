"""Every objective, by the same questions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instil.objective import CrossEntropy, ForwardKL
from instil.targets import Targets

OBJECTIVES = [CrossEntropy(), ForwardKL(), ForwardKL(temperature=2.0)]


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
    return Targets(ids, values - logsumexp[:, None], tail.clamp(min=-1e4), logsumexp, temperature)


def dense_kl(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return temperature**2 * (p * (p.log() - q.log())).sum(-1)


def test_cross_entropy_by_hand() -> None:
    student = torch.tensor([[0.25, 0.75]]).log()
    assert CrossEntropy()(student, torch.tensor([0])).item() == pytest.approx(math.log(4))


def test_forward_kl_by_hand_with_a_tail() -> None:
    teacher, student = (
        torch.tensor([[0.5, 0.3, 0.2]]).log(),
        torch.tensor([[0.25, 0.25, 0.5]]).log(),
    )
    got = ForwardKL()(student, torch.tensor([0]), Targets.of(teacher, top_k=1, temperature=1.0))
    # One kept token and the tail: 0.5 ln(0.5/0.25) + 0.5 ln(0.5/0.75)
    assert got.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_sparse_with_the_whole_vocabulary_is_dense(temperature: float) -> None:
    teacher, student = logits(5, 11), logits(5, 11, seed=1)
    objective = ForwardKL(temperature=temperature)
    got = objective(student, torch.zeros(5).long(), targets_of(teacher, 11, temperature))
    torch.testing.assert_close(got, dense_kl(teacher, student, temperature))


@given(k=st.integers(1, 12), seed=st.integers(0, 1000), scale=st.floats(0.1, 20))
def test_sparse_is_a_divergence_below_the_dense_one(k: int, seed: int, scale: float) -> None:
    teacher, student = logits(3, 12, seed, scale), logits(3, 12, seed + 1, scale)
    got = ForwardKL()(student, torch.zeros(3).long(), targets_of(teacher, k))
    assert (got >= -1e-9).all()
    assert (got <= dense_kl(teacher, student, 1.0) + 1e-9).all()


@pytest.mark.parametrize("top_k", [1, 4, 11])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_zero_at_equality_and_there_the_gradient_is_zero_too(
    top_k: int, temperature: float
) -> None:
    teacher = logits(4, 11)
    student = teacher.clone().requires_grad_()
    targets = targets_of(teacher, top_k, temperature)
    loss = ForwardKL(temperature=temperature)(student, torch.zeros(4).long(), targets)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-12, rtol=0)


def test_the_tail_is_held_to_its_mass() -> None:
    """The two usual mistakes have their optimum elsewhere: no tail at all, or any tail."""
    teacher = logits(1, 50)
    targets = targets_of(teacher, 5)
    student = torch.zeros(1, 50, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([student], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = ForwardKL()(student, torch.zeros(1).long(), targets).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    tail = 1 - student.softmax(-1).gather(-1, targets.ids_NK).sum()
    assert tail.item() == pytest.approx(targets.log_tail_N.exp().item(), abs=1e-4)
    assert tail.item() > 0.05


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_right(objective: CrossEntropy | ForwardKL) -> None:
    temperature = getattr(objective, "temperature", 1.0)
    student = logits(3, 7, seed=1).requires_grad_()
    targets, tokens = targets_of(logits(3, 7), 4, temperature), torch.tensor([0, 3, 6])
    assert torch.autograd.gradcheck(lambda s: objective(s, tokens, targets), (student,))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_tokens_give_no_loss_and_a_gradient(objective: CrossEntropy | ForwardKL) -> None:
    temperature = getattr(objective, "temperature", 1.0)
    student = torch.zeros(0, 7, requires_grad=True)
    loss = objective(
        student,
        torch.zeros(0).long(),
        Targets.of(torch.zeros(0, 7), top_k=3, temperature=temperature),
    )
    assert loss.shape == (0,)
    loss.sum().backward()
    assert student.grad is not None


def test_extreme_logits_stay_finite() -> None:
    teacher = torch.tensor([[1000.0, 0.0, -1000.0, 0.0]])
    student = torch.tensor([[0.0, 50.0, -50.0, 0.0]], requires_grad=True)
    for top_k in (1, 2, 4):
        loss = ForwardKL()(
            student, torch.tensor([0]), Targets.of(teacher, top_k=top_k, temperature=1.0)
        )
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()


def test_targets_of_another_temperature_are_refused() -> None:
    targets = Targets.of(torch.zeros(1, 4), top_k=2, temperature=1.0)
    with pytest.raises(ValueError, match="temperature 2"):
        ForwardKL(temperature=2.0)(torch.zeros(1, 4), torch.tensor([0]), targets)
