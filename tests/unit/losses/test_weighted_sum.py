from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tests.unit.losses.cases import logits, targets_of, zeros

from instil.losses import (
    CrossEntropy,
    ForwardKL,
    HiddenState,
    JensenShannon,
    LogitMSE,
    ReverseKL,
    Term,
    WeightedSum,
)


def total(*terms: Term) -> WeightedSum:
    return WeightedSum(terms=terms)


def test_by_hand() -> None:
    """0.5 times a cross-entropy of ln 4, and 3 times a squared difference of 1."""
    student = torch.tensor([[0.25, 0.75]]).double().log()
    targets = targets_of(student + 1, 2)
    got = total(CrossEntropy(weight=0.5), LogitMSE(weight=3.0))(student, zeros(1), targets)
    assert got.item() == pytest.approx(0.5 * torch.tensor(4.0).log().item() + 3)


def test_it_is_the_sum_of_what_its_terms_give_and_so_is_its_gradient() -> None:
    terms = (
        ForwardKL(weight=0.3, temperature=2.0),
        ReverseKL(temperature=2.0),
        LogitMSE(weight=2.0),
        CrossEntropy(),
    )
    student = logits(3, 7, seed=1).requires_grad_()
    targets, tokens = targets_of(logits(3, 7), 4, 2.0), torch.tensor([0, 3, 6])
    apart = sum(term(student, tokens, targets) for term in terms)
    got = total(*terms)(student, tokens, targets)
    torch.testing.assert_close(got, apart)
    assert torch.autograd.gradcheck(lambda s: total(*terms)(s, tokens, targets), (student,))


def test_a_sum_of_one_is_that_one() -> None:
    student, targets = logits(3, 7, seed=1), targets_of(logits(3, 7), 4)
    for term in (ForwardKL(weight=2.0), LogitMSE(), CrossEntropy(weight=0.1)):
        torch.testing.assert_close(
            total(term)(student, zeros(3), targets), term(student, zeros(3), targets)
        )


def test_logits_and_hidden_states_are_summed_apart() -> None:
    mixed = total(CrossEntropy(), HiddenState(weight=2.0), HiddenState(layers=(1,)))
    student, teacher = ([logits(3, 4, seed=s + i) for i in range(3)] for s in (0, 5))
    torch.testing.assert_close(
        mixed.hidden(student, teacher),
        2 * HiddenState().hidden(student, teacher)
        + HiddenState(layers=(1,)).hidden(student, teacher),
    )
    torch.testing.assert_close(
        mixed(logits(3, 7), zeros(3)), CrossEntropy()(logits(3, 7), zeros(3))
    )
    assert (total(HiddenState())(logits(3, 7), zeros(3)) == 0).all()
    assert (total(CrossEntropy()).hidden(student, teacher) == 0).all()


def test_no_tokens_give_no_loss_and_a_gradient() -> None:
    student = torch.zeros(0, 7, requires_grad=True)
    targets = targets_of(logits(0, 7), 3)
    loss = total(ForwardKL(), LogitMSE(), CrossEntropy())(student, zeros(0), targets)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert student.grad is not None


@pytest.mark.parametrize(
    ("terms", "needs", "temperature", "top_k"),
    [
        ([CrossEntropy()], (True, False, False), 1.0, None),
        ([CrossEntropy(), ForwardKL(temperature=2.0)], (True, True, False), 2.0, None),
        ([LogitMSE(top_k=3), LogitMSE(top_k=9)], (True, True, False), 1.0, 9),
        ([HiddenState()], (False, False, True), 1.0, None),
        ([HiddenState(), LogitMSE(), CrossEntropy()], (True, True, True), 1.0, 256),
        ([JensenShannon(temperature=3), LogitMSE(top_k=2)], (True, True, False), 3.0, 2),
    ],
)
def test_it_needs_what_its_terms_need(
    terms: list[Term], needs: tuple[bool, ...], temperature: float, top_k: int | None
) -> None:
    got = total(*terms)
    assert (got.needs_logits, got.needs_targets, got.needs_hidden_states) == needs
    assert (got.temperature, got.top_k_needed) == (temperature, top_k)


def test_terms_that_share_a_temperature_share_targets() -> None:
    with pytest.raises(
        ValidationError, match=r"forward_kl 2, reverse_kl 1\), but targets are stored"
    ):
        total(ForwardKL(temperature=2.0), LogitMSE(), ReverseKL())
    with pytest.raises(ValidationError, match="at least one loss"):
        total()


def test_a_loss_stands_there_once() -> None:
    with pytest.raises(ValidationError, match=r"losses 0 and 2 are the same \(cross_entropy\)"):
        total(CrossEntropy(), ForwardKL(), CrossEntropy(weight=2.0))
    assert len(total(LogitMSE(top_k=1), LogitMSE(top_k=2)).terms) == 2
