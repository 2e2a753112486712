from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch

from instil.losses import ForwardKL, LabelKL
from instil.losses.label_kl import LabelTargets
from instil.prompts.labels import LabelTokens
from instil.targets.prediction import Targets

V = 7
# Two labels of one and of two forms, and one of two tokens: two positions a row.
CHOICES = LabelTokens(("a", "b", "c"), (((0,),), ((1,), (2,)), ((3, 4),)))
GOLD = torch.tensor([2, 0, 1, 1])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2


def student(choices: LabelTokens | None = CHOICES, *, seed: int = 1) -> torch.Tensor:
    """Logits of four rows."""
    return random(4 * CHOICES.positions, V, seed=seed) if choices else random(4, 3, seed=seed)


def scores(logits_NV: torch.Tensor, choices: LabelTokens | None = CHOICES) -> torch.Tensor:
    return choices.logprobs([logits_NV]) if choices else logits_NV


def targets(
    probs: torch.Tensor | None = None,
    *,
    choices: LabelTokens | None = CHOICES,
    vocabulary: Targets | None = None,
) -> LabelTargets:
    if probs is None:
        probs = scores(student(choices, seed=5), choices).softmax(-1)
    mass = scores(student(seed=5)).exp().sum(-1)
    return LabelTargets(GOLD, probs, vocabulary, choices, mass)


def next_tokens(top_k: int = V, temperature: float = 1.0) -> Targets:
    kept = Targets.of(student(seed=5), top_k=top_k, temperature=temperature)
    return Targets(kept.ids_NK, *[t.double() for t in tensors(kept)], temperature)


def tensors(kept: Targets) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return kept.logprobs_NK, kept.log_tail_N, kept.logsumexp_N


def loss(
    logits_NV: torch.Tensor,
    known: LabelTargets,
    *,
    alpha: float = 1.0,
    over: Literal["labels", "labels_and_mass", "vocabulary"] = "labels",
    temperature: float = 1.0,
) -> torch.Tensor:
    objective = LabelKL(alpha=alpha, over=over, temperature=temperature)
    return objective(logits_NV, torch.zeros(len(logits_NV)).long(), known)


def test_by_hand() -> None:
    """Of 0.2 and 0.6 in the vocabulary the labels make 1/4 and 3/4."""
    logits = torch.tensor([[0.2, 0.6, 0.2]]).log()
    known = LabelTargets(
        torch.tensor([1]),
        torch.tensor([[0.5, 0.5]]),
        None,
        LabelTokens(("a", "b"), (((0,),), ((1,),))),
    )
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert loss(logits, known).item() == pytest.approx(kl, abs=1e-6)
    assert loss(logits, known, alpha=0).item() == pytest.approx(-math.log(0.75), abs=1e-6)
    mixed = 0.3 * kl - 0.7 * math.log(0.75)
    assert loss(logits, known, alpha=0.3).item() == pytest.approx(mixed, abs=1e-6)


@pytest.mark.parametrize("choices", [CHOICES, None], ids=["language model", "head"])
def test_alpha_0_is_cross_entropy_over_the_labels(choices: LabelTokens | None) -> None:
    logits = student(choices)
    expected = torch.nn.functional.cross_entropy(scores(logits, choices), GOLD, reduction="none")
    nobody_teaches = LabelTargets(GOLD, None, None, choices)
    torch.testing.assert_close(loss(logits, nobody_teaches, alpha=0), expected)
    assert expected.shape == (4,)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("choices", [CHOICES, None], ids=["language model", "head"])
def test_alpha_1_is_zero_at_equality_and_so_is_its_gradient(
    choices: LabelTokens | None, temperature: float
) -> None:
    logits = student(choices).requires_grad_()
    same = targets(scores(logits.detach(), choices).softmax(-1), choices=choices)
    got = loss(logits, same, temperature=temperature)
    got.sum().backward()
    torch.testing.assert_close(got, torch.zeros_like(got), atol=1e-12, rtol=0)
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-12, rtol=0)
    assert (loss(student(choices, seed=9), same) > 1e-3).all()


@pytest.mark.parametrize("over", ["labels", "labels_and_mass", "vocabulary"])
def test_the_mixture_is_linear(over: Any) -> None:
    known = targets(vocabulary=next_tokens())
    gold, taught = (loss(student(), known, alpha=alpha, over=over) for alpha in (0, 1))
    for alpha in (0.25, 0.8):
        got = loss(student(), known, alpha=alpha, over=over)
        torch.testing.assert_close(got, alpha * taught + (1 - alpha) * gold)
    assert not torch.allclose(gold, taught)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_flattens_both_sides_and_comes_back_squared(temperature: float) -> None:
    known = targets()
    assert known.probs_RL is not None
    p = known.probs_RL ** (1 / temperature)
    p = p / p.sum(-1, keepdim=True)
    q = scores(student()).exp() ** (1 / temperature)
    q = q / q.sum(-1, keepdim=True)
    expected = temperature**2 * (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(loss(student(), known, temperature=temperature), expected)


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_gold_part_has_no_temperature(alpha: float) -> None:
    hot, cold = (loss(student(), targets(), alpha=alpha, temperature=t) for t in (4.0, 1.0))
    assert torch.allclose(hot, cold) == (alpha == 0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("over", "choices"),
    [
        ("labels", CHOICES),
        ("labels", None),
        ("labels_and_mass", CHOICES),
        ("vocabulary", CHOICES),
    ],
)
def test_gradients_are_right(
    alpha: float, temperature: float, over: Any, choices: LabelTokens | None
) -> None:
    known = targets(choices=choices, vocabulary=next_tokens(4, temperature))

    def of(logits: torch.Tensor) -> torch.Tensor:
        return loss(logits, known, alpha=alpha, over=over, temperature=temperature)

    assert torch.autograd.gradcheck(of, (student(choices).requires_grad_(),))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_a_probability_of_zero_counts_for_nothing(temperature: float) -> None:
    logits = student().requires_grad_()
    probs = torch.tensor([[0.0, 0.25, 0.75], [1, 0, 0], [0, 0, 1], [0, 0.5, 0.5]]).double()
    got = loss(logits, targets(probs), temperature=temperature)
    got.sum().backward()
    near = loss(logits.detach(), targets(probs.clamp(min=1e-200)), temperature=temperature)
    torch.testing.assert_close(got, near)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("choices", [CHOICES, None], ids=["language model", "head"])
def test_a_student_that_broke_is_not_taken_for_a_perfect_one(choices: LabelTokens | None) -> None:
    assert loss(student(choices) * math.nan, targets(choices=choices)).isnan().all()


@pytest.mark.parametrize("top_k", [V, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_over_the_vocabulary_is_the_mean_forward_kl_of_the_row_s_positions(
    top_k: int, temperature: float
) -> None:
    kept = next_tokens(top_k, temperature)
    got = loss(student(), targets(vocabulary=kept), over="vocabulary", temperature=temperature)
    whole = ForwardKL(temperature=temperature)(student(), torch.zeros(8).long(), kept)
    expected = torch.stack([whole[2 * row : 2 * row + 2].mean() for row in range(4)])
    torch.testing.assert_close(got, expected)


def test_the_mass_of_all_labels_is_learnt_beside_the_labels() -> None:
    """Of 0.2 and 0.6 in the vocabulary the mass is 0.8, and the labels among themselves 1/4 and 3/4."""
    logits = torch.tensor([[0.2, 0.6, 0.2]]).log().requires_grad_()
    choices = LabelTokens(("a", "b"), (((0,),), ((1,),)))
    same, mass = torch.tensor([[0.25, 0.75]]), torch.tensor([0.5])
    known = LabelTargets(torch.tensor([1]), same, None, choices, mass)
    got = loss(logits, known, over="labels_and_mass")
    kl = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert got.item() == pytest.approx(kl, abs=1e-6)
    got.sum().backward()
    assert logits.grad is not None
    expected = torch.tensor([[0.2 - 0.125, 0.6 - 0.375, 0.2 - 0.5]])
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_mass_adds_to_the_loss_over_the_labels_what_the_labels_do_not_tell(
    temperature: float,
) -> None:
    known = targets()
    assert known.mass_R is not None
    overs: tuple[Literal["labels_and_mass", "labels"], ...] = ("labels_and_mass", "labels")
    both, labels = (loss(student(), known, over=o, temperature=temperature) for o in overs)
    m, q = known.mass_R, scores(student()).exp().sum(-1)
    expected = m * (m / q).log() + (1 - m) * ((1 - m) / (1 - q)).log()
    torch.testing.assert_close(both - labels, expected)
    same = loss(student(seed=5), known, over="labels_and_mass", temperature=temperature)
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-12, rtol=0)


@pytest.mark.parametrize("mass", [0.0, 0.9, 1.0])
def test_a_mass_of_1_keeps_loss_and_gradient_finite(mass: float) -> None:
    logits = torch.tensor([[90.0, 90.0, 0.0]]).requires_grad_()
    choices = LabelTokens(("a", "b"), (((0,),), ((1,),)))
    probs = torch.tensor([[0.5, 0.5]])
    known = LabelTargets(torch.tensor([1]), probs, None, choices, torch.tensor([mass]))
    got = loss(logits, known, over="labels_and_mass")
    got.sum().backward()
    assert got.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert loss(logits * math.nan, known, over="labels_and_mass").isnan().all()


@pytest.mark.parametrize("over", ["labels_and_mass", "vocabulary"])
def test_where_mass_is_learnt_gold_labels_compete_with_every_token(over: Any) -> None:
    known = targets(vocabulary=next_tokens())
    got = loss(student(), known, alpha=0, over=over)
    torch.testing.assert_close(got, -scores(student())[torch.arange(4), GOLD])
    assert (got > loss(student(), known, alpha=0)).all()


@pytest.mark.parametrize("over", ["labels", "labels_and_mass", "vocabulary"])
def test_rows_joined_are_rows_alone(over: Any) -> None:
    kept = next_tokens()
    alone = [
        LabelTargets(gold[None], probs[None], part, CHOICES, mass[None])
        for gold, probs, mass, part in zip(
            GOLD,
            targets().probs_RL,  # type: ignore[arg-type]
            targets().mass_R,  # type: ignore[arg-type]
            kept.split([2] * 4),
            strict=True,
        )
    ]
    apart = torch.cat(
        [
            loss(rows, one, alpha=0.5, over=over)
            for rows, one in zip(student().split(2), alone, strict=True)
        ]
    )
    joined = LabelTargets.cat(alone).to("cpu")
    torch.testing.assert_close(loss(student(), joined, alpha=0.5, over=over), apart)


@pytest.mark.parametrize(
    ("over", "missing"),
    [
        ("labels", "label probabilities"),
        ("labels_and_mass", "label probabilities"),
        ("vocabulary", "next-token targets"),
    ],
)
def test_without_a_teacher_only_alpha_0_will_do(over: Any, missing: str) -> None:
    nobody = LabelTargets(GOLD, None, None, CHOICES)
    with pytest.raises(ValueError, match=missing):
        loss(student(), nobody, alpha=0.5, over=over)
    assert loss(student(), nobody, alpha=0, over=over).shape == (4,)


def test_what_pads_the_vocabulary_has_no_probability() -> None:
    """With itself as its teacher a student has nothing to learn, however its output layer is padded."""
    choices = LabelTokens(CHOICES.labels, CHOICES.forms, V)
    padded = torch.cat([student(seed=5), torch.full((4 * CHOICES.positions, 3), 2.0)], dim=1)
    known = targets(choices=choices, vocabulary=next_tokens())
    assert loss(padded, known, over="vocabulary").abs().max() < 1e-6


@pytest.mark.parametrize("over", ["labels", "labels_and_mass", "vocabulary"])
def test_chunks_of_positions_are_all_positions(over: Any) -> None:
    objective, known = LabelKL(alpha=0.5, over=over), targets(vocabulary=next_tokens())
    chunks = student().split(3)  # a row has two positions
    starts = range(0, len(student()), 3)
    kept = [objective.of_positions(c, n, known) for c, n in zip(chunks, starts, strict=True)]
    assert max(each.shape[1] for each in kept) < V
    expected = loss(student(), known, alpha=0.5, over=over)
    torch.testing.assert_close(objective.of_rows(torch.cat(kept), known), expected)


def test_over_the_vocabulary_a_position_counts_for_each_path_through_it() -> None:
    """Three paths share the first position, and two of them the second one."""
    choices = LabelTokens(("a", "b", "c"), (((0, 1, 2),), ((0, 3, 4),), ((5, 6),)))
    assert choices.branches.nodes == ((), (0,), (0, 1), (0, 3), (5,))
    logits, teacher = random(10, V, seed=1), random(10, V, seed=5)
    kept = Targets.of(teacher, top_k=V, temperature=1.0)
    known = LabelTargets(torch.tensor([0, 1]), None, kept, choices)
    got = loss(logits, known, over="vocabulary")
    kl = ForwardKL()(logits, torch.zeros(10).long(), kept).reshape(2, 5)
    expected = (3 * kl[:, 0] + 2 * kl[:, 1] + kl[:, 2] + kl[:, 3] + kl[:, 4]) / 8
    torch.testing.assert_close(got, expected)
