from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from instil.errors import ConfigError
from instil.losses import HiddenState, WeightedSum


def states(count: int = 4, n: int = 3, d: int = 5, *, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, d, generator=generator, dtype=torch.float64) * 10**i for i in range(count)
    ]


def test_by_hand() -> None:
    """Layer 1: ((1-2)^2 + (3-2)^2) / (2^2 + 2^2) = 1/4; layer 2: 4^2 / (0 + 4^2) = 1."""
    student = [torch.ones(1, 2), torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)]
    teacher = [torch.zeros(1, 2), torch.tensor([[2.0, 2.0]]), torch.tensor([[0.0, 4.0]])]
    assert HiddenState().hidden(student, teacher).item() == pytest.approx((0.25 + 1) / 2)
    plain = HiddenState(normalise=False, weight=2.0)
    assert plain.hidden(student, teacher).item() == pytest.approx(2 * (1 + 8) / 2)


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [("all", [1, 2, 3]), ((0,), [0]), ((-1, 1), [1, 3]), ((-4, 3, -1), [0, 3])],
)
def test_layers_are_chosen_by_index(layers: Any, chosen: list[int]) -> None:
    loss = HiddenState(layers=layers, normalise=False)
    assert loss.chosen(4) == chosen
    student, teacher = states(), states(seed=1)
    expected = torch.stack([(student[i] - teacher[i]).square().mean(-1) for i in chosen]).mean(0)
    torch.testing.assert_close(loss.hidden(student, teacher), expected)


def test_the_norm_of_a_layer_does_not_matter_unless_asked() -> None:
    student, teacher = states(), states(seed=1)
    scaled = [[1000 * one for one in side] for side in (student, teacher)]
    torch.testing.assert_close(
        HiddenState().hidden(*scaled), HiddenState().hidden(student, teacher)
    )
    torch.testing.assert_close(
        HiddenState().hidden([one * 0 for one in student], teacher), torch.ones(3).double()
    )


def test_zero_at_equality_also_of_zeros() -> None:
    assert (HiddenState().hidden(states(), states()) == 0).all()
    nothing = [torch.zeros(2, 5, requires_grad=True) for _ in range(3)]
    loss = HiddenState().hidden(nothing, [one.detach() for one in nothing])
    loss.sum().backward()
    assert (loss == 0).all()
    assert nothing[1].grad is not None
    assert torch.isfinite(nothing[1].grad).all()


@pytest.mark.parametrize("normalise", [True, False])
def test_gradients_are_right_and_only_the_student_s(normalise: bool) -> None:
    student = [one.requires_grad_() for one in states(3)]
    teacher = [one.requires_grad_() for one in states(3, seed=1)]
    loss = HiddenState(normalise=normalise)
    assert torch.autograd.gradcheck(
        lambda *given: loss.hidden(given, [one.detach() for one in teacher]), tuple(student)
    )
    loss.hidden(student, teacher).sum().backward()
    assert teacher[1].grad is None


def test_a_token_s_loss_does_not_depend_on_its_batch() -> None:
    student, teacher = states(), states(seed=1)
    whole = HiddenState().hidden(student, teacher)
    alone = HiddenState().hidden([one[1:2] for one in student], [one[1:2] for one in teacher])
    torch.testing.assert_close(whole[1:2], alone)


def test_half_precision_is_compared_in_float32() -> None:
    student, teacher = ([one.bfloat16() for one in states(seed=seed)] for seed in (0, 1))
    got = HiddenState().hidden(student, teacher)
    assert got.dtype == torch.float32
    exact = HiddenState().hidden([one.double() for one in student], [o.double() for o in teacher])
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=0)


def test_no_tokens_give_no_loss_and_a_gradient() -> None:
    student = [one.requires_grad_() for one in states(n=0)]
    loss = HiddenState().hidden(student, states(n=0))
    assert loss.shape == (0,)
    loss.sum().backward()
    assert student[1].grad is not None


@pytest.mark.parametrize(
    ("layers", "teacher", "words"),
    [
        ((4,), states(), "no layer 4"),
        ((-5,), states(), "no layer -5"),
        ("all", states(3), "differ in layers or width"),
        ("all", states(d=6), "differ in layers or width"),
    ],
)
def test_models_that_do_not_fit_are_refused(layers: Any, teacher: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        HiddenState(layers=layers).hidden(states(), teacher)


def test_no_layer_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least one layer"):
        HiddenState(layers=())


def test_it_needs_hidden_states_alone() -> None:
    loss = HiddenState()
    assert (loss.needs_logits, loss.needs_targets, loss.needs_hidden_states) == (False, False, True)
    assert (loss.temperature, loss.top_k_needed) == (1.0, None)


def test_alone_it_is_what_a_sum_of_it_is() -> None:
    loss, student, teacher = HiddenState(weight=0.5), states(), states(seed=1)
    summed = WeightedSum(terms=(loss,))
    assert torch.equal(loss.hidden(student, teacher), summed.hidden(student, teacher))
    logits = torch.randn(4, 5)
    assert torch.equal(loss(logits, torch.zeros(4).long(), None), torch.zeros(4))
