"""The divergences against TRL's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.losses.cases import logits, targets_of, zeros

from instil.losses import ForwardKL, JensenShannon, ReverseKL

V = 13
# TRL's beta: 0 and 1 stand for the two KLs.
PAIRS = [
    (ForwardKL, {}, 0.0),
    (ReverseKL, {}, 1.0),
    *[(JensenShannon, {"beta": beta}, beta) for beta in (0.1, 0.5, 0.9)],
]


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """TRL's loss, summed over positions."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns that its module may move
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    loss: Callable[..., torch.Tensor] = functools.partial(
        gkd.GKDTrainer.generalized_jsd_loss, reduction="sum"
    )
    return loss


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize(("kind", "settings", "beta"), PAIRS)
def test_values_and_gradients_are_trl_s_but_for_the_temperature_squared(
    theirs: Any, kind: Any, settings: dict[str, float], beta: float, temperature: float
) -> None:
    teacher = logits(6, V)
    ours, other = (logits(6, V, seed=1).requires_grad_() for _ in range(2))
    loss = kind(temperature=temperature, **settings)
    got = loss(ours, zeros(6), targets_of(teacher, V, temperature)).sum()
    got.backward()
    expected = temperature**2 * theirs(
        other[None], teacher[None], beta=beta, temperature=temperature
    )
    expected.backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(ours.grad, other.grad)


@pytest.mark.parametrize(("kind", "settings", "beta"), PAIRS)
def test_with_a_tail_it_is_trl_s_on_the_merged_outcomes(
    theirs: Any, kind: Any, settings: dict[str, float], beta: float
) -> None:
    """The log-probability of the tail is a logit: that of all its tokens together."""
    teacher, kept = logits(6, V), 4
    targets = targets_of(teacher, kept)
    order = teacher.argsort(-1, descending=True)

    def merged(scores: torch.Tensor) -> torch.Tensor:
        sorted_NV = scores.gather(-1, order)
        tail = sorted_NV[:, kept:].logsumexp(-1, keepdim=True)
        return torch.cat([sorted_NV[:, :kept], tail], -1)[None]

    ours, other = (logits(6, V, seed=1).requires_grad_() for _ in range(2))
    got = kind(**settings)(ours, zeros(6), targets).sum()
    got.backward()
    expected = theirs(merged(other), merged(teacher), beta=beta)
    expected.backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(ours.grad, other.grad)
