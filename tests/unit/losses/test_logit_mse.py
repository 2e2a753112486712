from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.losses.cases import logits, targets_of, zeros

from instil.losses import LogitMSE
from instil.targets.prediction import Targets


def test_by_hand() -> None:
    """The teacher's two largest logits are 3 and 2; the student has 1 and 2 there."""
    teacher, student = torch.tensor([[3.0, 0.0, 2.0]]), torch.tensor([[1.0, 9.0, 2.0]])
    stored = Targets.of(teacher, top_k=3, temperature=1.0)
    assert LogitMSE(top_k=2)(student, zeros(1), stored).item() == pytest.approx((4 + 0) / 2)
    assert LogitMSE()(student, zeros(1), stored).item() == pytest.approx((4 + 81 + 0) / 3)


@given(
    temperature=st.floats(0.25, 4),
    top_k=st.integers(1, 12),
    stored=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_it_compares_raw_logits_of_any_targets(
    temperature: float, top_k: int, stored: int, seed: int
) -> None:
    teacher, student = logits(3, 9, seed), logits(3, 9, seed + 1)
    got = LogitMSE(top_k=top_k)(student, zeros(3), targets_of(teacher, stored, temperature))
    ids = teacher.topk(min(top_k, stored)).indices
    expected = (student.gather(-1, ids) - teacher.gather(-1, ids)).square().mean(-1)
    torch.testing.assert_close(got, expected)


def test_zero_at_equality_and_not_where_softmax_alone_agrees() -> None:
    teacher = logits(3, 9)
    targets = targets_of(teacher, 4)
    torch.testing.assert_close(
        LogitMSE()(teacher, zeros(3), targets), torch.zeros(3).double(), atol=1e-20, rtol=0
    )
    torch.testing.assert_close(
        LogitMSE()(teacher + 3, zeros(3), targets), torch.full((3,), 9.0).double()
    )


def test_a_token_without_probability_is_not_compared() -> None:
    """Its logit is minus infinity, of which no target can be made."""
    teacher = torch.tensor([[1.0, 0.0, -math.inf]])
    student = torch.tensor([[2.0, 0.0, 5.0]], requires_grad=True)
    loss = LogitMSE()(student, zeros(1), Targets.of(teacher, top_k=3, temperature=1.0))
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.5)
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, 0.0, 0.0]]))


def test_it_says_how_many_it_needs() -> None:
    assert LogitMSE(top_k=7).top_k_needed == 7
    assert LogitMSE().temperature == 1.0
