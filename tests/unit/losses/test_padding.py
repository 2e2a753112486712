"""Targets whose tokens keep different numbers of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.losses.cases import OBJECTIVES, logits, targets_of, zeros

from instil.losses.base import LogitLoss
from instil.targets.prediction import LOG_ZERO, Targets

V = 9


def ragged(kept: Sequence[int], temperature: float = 1.0) -> tuple[list[Targets], Targets]:
    """Targets of one token each, with `kept` tokens or fewer; and the same in one batch."""
    teacher = logits(len(kept), V)
    apart = [targets_of(teacher[n : n + 1], k, temperature) for n, k in enumerate(kept)]
    return apart, Targets.cat(apart)


@given(
    objective=st.sampled_from(OBJECTIVES),
    kept=st.lists(st.integers(1, V), min_size=1, max_size=5),
    padding=st.integers(0, V - 1),
)
def test_padded_rows_are_the_rows_alone(
    objective: LogitLoss, kept: list[int], padding: int
) -> None:
    """Whatever id the padding has: one in the tail, or one that is kept in the same row."""
    apart, together = ragged(kept, objective.temperature)
    if together.kept_NK is not None:
        ids = together.ids_NK.masked_fill(~together.kept_NK, padding)
        together = replace(together, ids_NK=ids)
    student = logits(len(kept), V, seed=1).requires_grad_()
    tokens = torch.arange(len(kept))
    expected = torch.cat(
        [objective(student[n : n + 1], tokens[n : n + 1], one) for n, one in enumerate(apart)]
    )
    (wanted,) = torch.autograd.grad(expected.sum(), student)
    got = objective(student, tokens, together)
    (gradient,) = torch.autograd.grad(got.sum(), student)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-7)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_gradients_of_padded_rows_are_right(objective: LogitLoss) -> None:
    _, together = ragged([1, V, 4], objective.temperature)
    student = logits(3, V, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: objective(s, zeros(3), together), (student,))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_a_token_that_keeps_none_is_all_tail(objective: LogitLoss) -> None:
    """Of one outcome every model is sure; only the loss of the completion is left."""
    nothing = Targets(
        torch.zeros(1, 2).long(),
        torch.full((1, 2), LOG_ZERO).double(),
        torch.zeros(1).double(),
        torch.zeros(1).double(),
        objective.temperature,
        torch.zeros(1, 2, dtype=torch.bool),
    )
    student = logits(1, V).requires_grad_()
    loss = objective(student, zeros(1), nothing)
    loss.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    if objective.needs_targets:
        assert loss.item() == pytest.approx(0, abs=1e-12)
        assert student.grad.abs().max().item() < 1e-12


def test_split_and_cat_of_padded_targets() -> None:
    apart, together = ragged([1, 4, 2])
    assert together.kept_NK is not None
    assert together.kept_NK.sum(-1).tolist() == [1, 4, 2]
    assert (together.logprobs_NK[~together.kept_NK] == LOG_ZERO).all()
    assert (together.ids_NK[~together.kept_NK] == 0).all()
    again = Targets.cat(together.split([1, 2])).to(torch.device("cpu"))
    assert again.kept_NK is not None
    assert torch.equal(again.kept_NK, together.kept_NK)
    assert torch.equal(again.ids_NK, together.ids_NK)
    assert Targets.cat(apart[:1]).kept_NK is None
    assert Targets.cat([apart[0], together]).kept_NK.sum(-1).tolist() == [1, 1, 4, 2]  # type: ignore[union-attr]
