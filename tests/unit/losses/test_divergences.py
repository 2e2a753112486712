"""Forward KL, reverse KL and Jensen-Shannon, by the same questions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.losses.cases import DIVERGENCES, logits, outcomes, targets_of, zeros

from instil.losses import ForwardKL, JensenShannon, ReverseKL
from instil.losses.divergence import Divergence
from instil.targets.prediction import Targets


def plain(loss: Divergence, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The loss of two distributions, from its definition."""

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.where(a > 0, a * (a / b).log(), 0).sum(-1)

    if isinstance(loss, JensenShannon):
        m = loss.beta * p + (1 - loss.beta) * q
        value = loss.beta * kl(p, m) + (1 - loss.beta) * kl(q, m)
    else:
        value = kl(p, q) if isinstance(loss, ForwardKL) else kl(q, p)
    return loss.weight * loss.temperature**2 * value


def by_hand(loss: Divergence) -> float:
    """Teacher (0.5, 0.3, 0.2), student (0.25, 0.25, 0.5); one kept token and the tail."""
    teacher, student = (
        torch.tensor([[0.5, 0.3, 0.2]]).log(),
        torch.tensor([[0.25, 0.25, 0.5]]).log(),
    )
    return loss(student, zeros(1), Targets.of(teacher, top_k=1, temperature=1.0)).item()


def test_forward_kl_by_hand() -> None:
    """0.5 ln(0.5/0.25) + 0.5 ln(0.5/0.75)."""
    assert by_hand(ForwardKL()) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_reverse_kl_by_hand() -> None:
    """0.25 ln(0.25/0.5) + 0.75 ln(0.75/0.5)."""
    assert by_hand(ReverseKL()) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_jensen_shannon_by_hand() -> None:
    """With beta = 0.2 the mixture is 0.2 (0.5, 0.5) + 0.8 (0.25, 0.75) = (0.3, 0.7)."""
    from_teacher = 0.5 * math.log(0.5 / 0.3) + 0.5 * math.log(0.5 / 0.7)
    from_student = 0.25 * math.log(0.25 / 0.3) + 0.75 * math.log(0.75 / 0.7)
    expected = 0.2 * from_teacher + 0.8 * from_student
    assert by_hand(JensenShannon(beta=0.2)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_sparse_with_the_whole_vocabulary_is_dense(kind: Any, temperature: float) -> None:
    teacher, student = logits(5, 11), logits(5, 11, seed=1)
    loss = kind(temperature=temperature)
    got = loss(student, zeros(5), targets_of(teacher, 11, temperature))
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    torch.testing.assert_close(got, plain(loss, p, q))


@given(
    kind=st.sampled_from(DIVERGENCES),
    k=st.integers(1, 12),
    seed=st.integers(0, 1000),
    scale=st.floats(0.1, 20),
)
def test_sparse_is_a_divergence_below_the_dense_one(
    kind: Any, k: int, seed: int, scale: float
) -> None:
    teacher, student = logits(3, 12, seed, scale), logits(3, 12, seed + 1, scale)
    got = kind()(student, zeros(3), targets_of(teacher, k))
    dense = kind()(student, zeros(3), targets_of(teacher, 12))
    assert (got >= -1e-9).all()
    assert (got <= dense + 1e-9).all()


@given(
    kind=st.sampled_from(DIVERGENCES),
    k=st.integers(1, 9),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 1000),
)
def test_it_is_what_its_definition_says(kind: Any, k: int, temperature: float, seed: int) -> None:
    teacher, student = logits(3, 9, seed), logits(3, 9, seed + 1)
    targets = targets_of(teacher, k, temperature)
    loss = kind(temperature=temperature, weight=0.5)
    expected = plain(loss, outcomes(teacher, targets), outcomes(student, targets))
    torch.testing.assert_close(loss(student, zeros(3), targets), expected)


@pytest.mark.parametrize("top_k", [1, 4, 11])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_zero_at_equality_and_there_the_gradient_is_zero_too(
    kind: Any, top_k: int, temperature: float
) -> None:
    teacher = logits(4, 11)
    student = teacher.clone().requires_grad_()
    loss = kind(temperature=temperature)(student, zeros(4), targets_of(teacher, top_k, temperature))
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_the_size_of_the_gradient_hardly_depends_on_the_temperature(kind: Any) -> None:
    """At high temperatures tau^2 cancels what softening takes away; without it, hot would be 100 times smaller."""
    sizes = []
    for temperature in (20.0, 200.0):
        student = logits(8, 11, seed=1).requires_grad_()
        targets = targets_of(logits(8, 11), 11, temperature)
        kind(temperature=temperature)(student, zeros(8), targets).sum().backward()
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_the_tail_is_held_to_its_mass(kind: Any) -> None:
    """The two usual mistakes have their optimum elsewhere: no tail at all, or any tail."""
    targets = targets_of(logits(1, 50), 5)
    student = torch.zeros(1, 50, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [student], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = kind()(student, zeros(1), targets).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    tail = 1 - student.softmax(-1).gather(-1, targets.ids_NK).sum()
    assert tail.item() == pytest.approx(targets.log_tail_N.exp().item(), abs=1e-3)
    assert tail.item() > 0.05


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_tail_too_small_for_one_minus_the_rest_is_seen(kind: Any) -> None:
    """In float32 1 - (1 - 1e-9) is 0, and the loss and its gradient would be lost or infinite."""
    teacher = torch.tensor([[0.0, -18.0, -25.0]])
    student = torch.tensor([[0.0, -25.0, -20.0]], requires_grad=True)
    stored = Targets.of(teacher, top_k=2, temperature=1.0)
    loss = kind()(student, zeros(1), stored)
    loss.backward()
    exact = student.detach().double().requires_grad_()
    reference = kind()(exact, zeros(1), targets_of(teacher.double(), 2))
    reference.backward()
    assert student.grad is not None
    assert exact.grad is not None
    # Not of the first token: its own probability is 1 on both sides, as float32 rounds it.
    torch.testing.assert_close(student.grad[:, 1:].double(), exact.grad[:, 1:], rtol=1e-3, atol=0)
    assert exact.grad[0, 2].item() != 0


def test_jensen_shannon_tends_to_both_kls() -> None:
    teacher, student = logits(4, 9), logits(4, 9, seed=1)
    targets = targets_of(teacher, 5)
    for beta, share, kl in ((1e-6, 1e-6, ForwardKL()), (1 - 1e-6, 1e-6, ReverseKL())):
        got = JensenShannon(beta=beta)(student, zeros(4), targets) / share
        torch.testing.assert_close(got, kl(student, zeros(4), targets), rtol=1e-3, atol=1e-6)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 200), beta=st.floats(0.01, 0.99))
def test_jensen_shannon_is_bounded(seed: int, scale: float, beta: float) -> None:
    teacher, student = logits(3, 9, seed, scale), logits(3, 9, seed + 1, scale)
    bound = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    assert (
        JensenShannon(beta=beta)(student, zeros(3), targets_of(teacher, 4)) <= bound + 1e-9
    ).all()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_targets_of_another_temperature_are_refused(kind: Any) -> None:
    targets = Targets.of(torch.zeros(1, 4), top_k=2, temperature=1.0)
    with pytest.raises(ValueError, match=r"temperature 2.0 \(got targets of temperature 1.0"):
        kind(temperature=2.0)(torch.zeros(1, 4), zeros(1), targets)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_one_copy_of_the_logits_is_kept_for_the_gradient(temperature: float) -> None:
    teacher, student = logits(4, 64), logits(4, 64, seed=1).requires_grad_()
    targets = targets_of(teacher, 8, temperature)
    kept: set[int] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() >= student.numel():
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = ForwardKL(temperature=temperature)(student, zeros(4), targets)
    loss.sum().backward()
    assert len(kept - {student.untyped_storage().data_ptr()}) <= 1
