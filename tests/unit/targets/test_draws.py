"""What is kept of a teacher's prediction: likely outcomes, and some that are drawn from the tail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.losses.cases import logits, zeros
from tests.unit.targets.test_store import TOP_K, VOCABULARY, made

from instil.errors import NotFiniteLossError
from instil.losses import (
    CrossEntropy,
    ForwardKL,
    JensenShannon,
    LogitMSE,
    Objective,
    ReverseKL,
    WeightedSum,
)
from instil.targets import draws as draws_module
from instil.targets.codec import EXCESS_STEP, STEP, decode, encode
from instil.targets.draws import points, sparse, trim
from instil.targets.prediction import Targets
from instil.targets.selection import Selection

DRAWN = Selection(top_k=TOP_K, min_probability=0.01, mass_per_draw=0.05)


def drawn(
    logits_NV: torch.Tensor, point: float = 0.3, kept: Selection = DRAWN, temperature: float = 1.0
) -> Targets:
    at_N = torch.full((len(logits_NV),), point, dtype=torch.double)
    return sparse(logits_NV, at_N, kept=kept, temperature=temperature)


@given(mass=st.floats(0.001, 1), scale=st.floats(0, 8), seed=st.integers(0, 99))
def test_the_fewest_outcomes_that_cover_the_mass_are_kept(
    mass: float, scale: float, seed: int
) -> None:
    dense = made(5, scale=scale, seed=seed)
    kept = trim(dense, Selection(top_k=TOP_K, mass=mass))
    whole = kept.logprobs_NK.exp().sum(-1) + kept.log_tail_N.exp()
    torch.testing.assert_close(whole, torch.ones(5), atol=1e-5, rtol=0)
    for token in range(5):
        mask = torch.ones(TOP_K, dtype=torch.bool) if kept.kept_NK is None else kept.kept_NK[token]
        count = int(mask.sum())
        assert 1 <= count <= TOP_K
        assert mask[:count].all()
        assert torch.equal(kept.ids_NK[token, :count], dense.ids_NK[token, :count])
        covered = dense.logprobs_NK[token].double().exp().cumsum(-1)
        assert count == TOP_K or covered[count - 1] >= mask.new_tensor(mass, dtype=torch.double)
        assert count == 1 or covered[count - 2] < mass


@given(
    least=st.floats(0, 0.5, exclude_min=True),
    at_least=st.integers(1, TOP_K + 2),
    scale=st.floats(0, 8),
    seed=st.integers(0, 99),
)
def test_outcomes_that_are_likely_enough_are_kept_and_as_many_as_a_loss_reads(
    least: float, at_least: int, scale: float, seed: int
) -> None:
    dense = made(5, scale=scale, seed=seed)
    kept = trim(dense, Selection(top_k=TOP_K, min_probability=least, at_least=at_least))
    whole = kept.logprobs_NK.exp().sum(-1) + kept.log_tail_N.exp()
    torch.testing.assert_close(whole, torch.ones(5), atol=1e-5, rtol=0)
    likely = (dense.logprobs_NK.double().exp() >= least).sum(-1)
    counts = kept.kept.sum(-1)
    assert counts.tolist() == likely.clamp(min=min(at_least, TOP_K)).tolist()
    for token, count in enumerate(counts):
        assert kept.kept[token, :count].all()
        assert torch.equal(kept.ids_NK[token, :count], dense.ids_NK[token, :count])


def test_without_a_rule_exactly_top_k_are_kept() -> None:
    targets = made(4, scale=20)
    assert trim(targets, Selection(top_k=TOP_K)) is targets
    assert decode(encode(targets), tokens=4, temperature=1.0).kept_NK is None


@pytest.mark.parametrize(
    "rule", [Selection(top_k=9, min_probability=1e-3), Selection(top_k=9, mass=0.9)]
)
def test_softer_targets_keep_what_sharp_ones_keep(rule: Selection) -> None:
    """At a high temperature no outcome is likely, and all would be let go."""
    sharp = made(5, top_k=9, vocabulary=9)
    soft = trim(made(5, top_k=9, vocabulary=9, temperature=8.0), rule)
    assert torch.equal(soft.kept, trim(sharp, rule).kept)
    assert not soft.kept.all()


def test_what_is_trimmed_can_be_trimmed_again() -> None:
    half = Selection(top_k=TOP_K, mass=0.5)
    once = trim(made(4), Selection(top_k=TOP_K, mass=0.99))
    twice = trim(once, half)
    assert torch.equal(twice.ids_NK, trim(made(4), half).ids_NK)
    assert trim(once, Selection(top_k=TOP_K)) is once


@given(
    least=st.sampled_from([0.0, 1e-3, 0.2]),
    mass_per_draw=st.floats(1e-3, 0.9),
    point=st.floats(0, 1, exclude_max=True),
    scale=st.sampled_from([0.0, 1.0, 3.0, 20.0]),
    seed=st.integers(0, 99),
)
def test_what_is_drawn_shares_the_mass_of_the_tail(
    least: float, mass_per_draw: float, point: float, scale: float, seed: int
) -> None:
    logits_NV = logits(5, VOCABULARY, seed, scale).float()
    rule = Selection(top_k=TOP_K, min_probability=least, mass_per_draw=mass_per_draw)
    trimmed = trim(Targets.of(logits_NV, top_k=TOP_K, temperature=1.0), rule)
    got = drawn(logits_NV, point, rule)
    assert got.ids_NK.shape[1] <= rule.most
    whole = (got.logprobs_NK.exp() * got.kept).sum(-1) + got.log_tail_N.exp()
    torch.testing.assert_close(whole, torch.ones(5), atol=1e-5, rtol=0)
    for token in range(5):
        mine = got.kept[token]
        ids, logprobs = got.ids_NK[token][mine].tolist(), got.logprobs_NK[token][mine].tolist()
        assert len(set(ids)) == len(ids)
        assert all(one >= following for one, following in pairwise(logprobs))
        before = trimmed.kept[token]
        exact = zip(
            trimmed.ids_NK[token][before].tolist(),
            trimmed.logprobs_NK[token][before].tolist(),
            strict=True,
        )
        assert dict(exact).items() <= dict(zip(ids, logprobs, strict=True)).items()
        tail = trimmed.log_tail_N[token].double().exp().item()
        count = min(round(tail / mass_per_draw), TOP_K)
        new = [
            p for v, p in zip(ids, logprobs, strict=True) if v not in trimmed.ids_NK[token][before]
        ]
        assert bool(new) == (count > 0)
        if count:
            times = [torch.tensor(p).double().exp().item() * count / tail for p in new]
            assert [round(one) for one in times] == pytest.approx(times, rel=1e-3)
            assert sum(map(round, times)) == count
        else:
            assert got.log_tail_N[token] == trimmed.log_tail_N[token]


def over_all_points(
    loss: Objective,
    teacher_NV: torch.Tensor,
    student_NV: torch.Tensor,
    kept: Selection,
    read: Callable[[Targets], Targets] = lambda targets: targets,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each token and its gradient, the mean over 2,000 points: all of them in one batch."""
    student_NV, number = student_NV.clone().requires_grad_(), 2000
    at_N = ((torch.arange(number, dtype=torch.double) + 0.5) / number).repeat_interleave(4)
    made = sparse(teacher_NV.repeat(number, 1), at_N, kept=kept, temperature=loss.temperature)
    loss_N = loss(student_NV.repeat(number, 1), zeros(4 * number), read(made))
    mean_N = loss_N.view(number, 4).mean(0)
    (gradient_NV,) = torch.autograd.grad(mean_N.sum(), student_NV)
    return mean_N.detach(), gradient_NV


def dense(
    loss: Objective, teacher_NV: torch.Tensor, student_NV: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    student_NV = student_NV.clone().requires_grad_()
    whole = Targets.of(teacher_NV, top_k=teacher_NV.shape[1], temperature=loss.temperature)
    loss_N = loss(student_NV, zeros(len(student_NV)), whole)
    (gradient_NV,) = torch.autograd.grad(loss_N.sum(), student_NV)
    return loss_N.detach(), gradient_NV


@pytest.mark.parametrize("kept", [DRAWN, Selection(top_k=2, mass_per_draw=0.2)], ids=repr)
@pytest.mark.parametrize(
    "loss",
    [
        ForwardKL(),
        ForwardKL(temperature=2.0, weight=3.0),
        WeightedSum(terms=(CrossEntropy(), ForwardKL())),
    ],
    ids=repr,
)
def test_one_expects_the_loss_and_the_gradient_of_all_outcomes(
    loss: Objective, kept: Selection
) -> None:
    teacher_NV, student_NV = logits(4, 40).float(), logits(4, 40, seed=1).float()
    value_N, gradient_NV = over_all_points(loss, teacher_NV, student_NV, kept)
    exact_N, slope_NV = dense(loss, teacher_NV, student_NV)
    torch.testing.assert_close(value_N, exact_N, atol=2e-3, rtol=3e-3)
    torch.testing.assert_close(gradient_NV, slope_NV, atol=3e-3, rtol=0)
    one = loss(student_NV, zeros(4), drawn(teacher_NV, 0.3, kept, loss.temperature))
    assert not torch.allclose(one, exact_N, atol=1e-2)
    assert loss.takes_draws


def test_what_is_stored_has_no_bias_either() -> None:
    teacher_NV, student_NV = logits(4, 40).float(), logits(4, 40, seed=1).float()

    def stored(targets: Targets) -> Targets:
        return decode(encode(targets), tokens=len(targets.ids_NK), temperature=1.0)

    value_N, gradient_NV = over_all_points(ForwardKL(), teacher_NV, student_NV, DRAWN, stored)
    exact_N, slope_NV = dense(ForwardKL(), teacher_NV, student_NV)
    torch.testing.assert_close(value_N, exact_N, atol=STEP / 2, rtol=0)
    torch.testing.assert_close(gradient_NV, slope_NV, atol=STEP / 4, rtol=0)


@pytest.mark.parametrize("loss", [ReverseKL(), JensenShannon(), LogitMSE()], ids=repr)
def test_a_loss_that_takes_no_draws_is_given_none(loss: Objective) -> None:
    logits_NV = logits(4, 40).float()
    with pytest.raises(ValueError, match=f"{loss.name} needs targets without drawn outcomes"):
        loss(logits_NV, zeros(4), drawn(logits_NV))


@pytest.mark.parametrize("loss", [ReverseKL(), JensenShannon()], ids=repr)
def test_a_loss_that_is_not_linear_takes_no_draws(loss: Objective) -> None:
    """Its expectation would be another than its value."""
    teacher_NV, student_NV = logits(4, 40).float(), logits(4, 40, seed=1).float()
    value_N, _ = over_all_points(
        loss, teacher_NV, student_NV, DRAWN, lambda targets: replace(targets, excess_N=None)
    )
    exact_N, _ = dense(loss, teacher_NV, student_NV)
    assert not torch.allclose(value_N, exact_N, atol=2e-2)
    assert not loss.takes_draws
    assert not WeightedSum(terms=(ForwardKL(), loss)).takes_draws


def test_a_student_that_predicts_what_the_teacher_does_has_no_loss() -> None:
    """Whatever is drawn."""
    logits_NV = logits(4, 40).float()
    for point in (0.0, 0.3, 0.9):
        loss_N = ForwardKL()(logits_NV, zeros(4), drawn(logits_NV, point))
        torch.testing.assert_close(loss_N, torch.zeros(4), atol=1e-5, rtol=0)


def test_a_vocabulary_that_is_padded_draws_no_padding() -> None:
    logits_NV = logits(5, 40).float()
    padded_NV = torch.nn.functional.pad(logits_NV, (3, 9), value=float("-inf"))
    plain, wide = drawn(logits_NV), drawn(padded_NV)
    assert torch.equal(wide.kept, plain.kept)
    assert torch.equal(wide.ids_NK[wide.kept], plain.ids_NK[plain.kept] + 3)
    torch.testing.assert_close(wide.excess, plain.excess)


@pytest.mark.parametrize("draws", [1, 5])
def test_a_draw_that_goes_astray_is_let_go(monkeypatch: pytest.MonkeyPatch, draws: int) -> None:
    """Sums on an accelerator may find what is kept."""
    logits_NV = logits(6, VOCABULARY).float()
    tail = trim(Targets.of(logits_NV, top_k=TOP_K, temperature=1.0), DRAWN).log_tail_N.exp()
    rule = DRAWN.model_copy(update={"mass_per_draw": tail.mean().item() / draws})
    usual, likeliest_N1 = draws_module._systematic, logits_NV.argmax(-1, keepdim=True)

    def astray(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids_RM, times_RM = usual(*given)
        return torch.cat([likeliest_N1[: len(ids_RM)], ids_RM[:, 1:]], -1), times_RM

    monkeypatch.setattr(draws_module, "_systematic", astray)
    got = drawn(logits_NV, 0.3, rule)
    for ids, mask in zip(got.ids_NK, got.kept, strict=True):
        assert len(set(ids[mask].tolist())) == int(mask.sum())
    whole = (got.logprobs_NK.exp() * got.kept).sum(-1) + got.log_tail_N.exp()
    torch.testing.assert_close(whole, torch.ones(6), atol=1e-5, rtol=0)
    assert (got.excess >= 0).all()


def test_a_token_is_drawn_alike_whenever_it_is_asked_for() -> None:
    assert torch.equal(points([1, 2], [3, 4]), points([1, 2], [3, 4]))
    others = [points([1, 2], [3, 5]), points([1, 3], [3, 4]), points([1], [2, 3, 4])[:2]]
    assert not any(torch.equal(points([1, 2], [3, 4]), one) for one in others)
    many = torch.cat([points([number], [7] * 50) for number in range(100)])
    assert 0 <= many.min() < 0.01
    assert 0.99 < many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.02)


def test_draws_are_the_same_in_any_company() -> None:
    logits_NV = logits(6, VOCABULARY).float()
    at_N = points([1], [2] * 6)
    whole = sparse(logits_NV, at_N, kept=DRAWN, temperature=1.0)
    halves = [
        sparse(logits_NV[cut], at_N[cut], kept=DRAWN, temperature=1.0)
        for cut in (slice(0, 1), slice(1, 6))
    ]
    joined = Targets.cat(halves)
    assert torch.equal(joined.ids_NK[joined.kept], whole.ids_NK[whole.kept])
    assert torch.equal(joined.logprobs_NK[joined.kept], whole.logprobs_NK[whole.kept])
    assert torch.equal(joined.excess, whole.excess)
    assert torch.equal(Targets.cat(whole.split([2, 4])).excess, whole.excess)


def test_draws_are_stored() -> None:
    kept = drawn(logits(9, VOCABULARY).float())
    got = decode(encode(kept), tokens=9, temperature=1.0)
    assert kept.excess_N is not None
    assert kept.excess_N.abs().min() > EXCESS_STEP
    assert got.excess_N is not None
    assert (got.excess_N - kept.excess_N).abs().max() <= EXCESS_STEP / 2 + 1e-6
    assert torch.equal(got.kept, kept.kept)
    assert torch.equal(got.ids_NK[got.kept], kept.ids_NK[kept.kept])
    assert (got.logprobs_NK - kept.logprobs_NK)[kept.kept].abs().max() <= STEP + 1e-4
    assert (got.log_tail_N < -1000).all()


def test_a_teacher_that_broke_is_told_of_when_it_is_stored() -> None:
    logits_NV = logits(3, VOCABULARY).float()
    logits_NV[1] = float("nan")
    with pytest.raises(NotFiniteLossError, match="token 2 of 3"):
        encode(drawn(logits_NV))
