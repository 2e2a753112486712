"""A loss in chunks, against the same loss of all logits at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conftest import byte_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from instil.losses import CrossEntropy, ForwardKL, WeightedSum
from instil.models import chunked
from instil.models.batch import collate
from instil.models.chunked import Head, chunked_sum
from instil.models.forward import completion_logits, read
from instil.targets.prediction import Targets

D, V, POSITIONS = 6, 40, 5  # a chunk has five positions
OBJECTIVES = [CrossEntropy(), ForwardKL(temperature=2.0), WeightedSum(terms=(CrossEntropy(),))]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "MOST_LOGITS", POSITIONS * V + V - 1)


def head_of(*, trained: bool = False, bias: bool = True, autocast: Any = None) -> Head:
    layer = torch.nn.Linear(D, V, bias=bias).requires_grad_(trained)
    return Head(layer, vocabulary=V, autocast=autocast)


def loss_of(objective: Any, n: int) -> Callable[[Tensor, int, int], Tensor]:
    """As training calls it."""
    completion_N = torch.randint(V, (n,))
    targets = Targets.of(2 * torch.randn(n, V), top_k=7, temperature=objective.temperature)

    def loss(logits_CV: Tensor, start: int, end: int) -> Tensor:
        given: Tensor = objective(logits_CV, completion_N[start:end], targets.part(start, end))
        return given

    return loss


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("n", [1, 4, 5, 12])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: one.name)
def test_value_and_gradients_are_those_of_the_whole(objective: Any, n: int, trained: bool) -> None:
    hidden_ND, head, loss = torch.randn(n, D, requires_grad=True), head_of(trained=trained), None
    loss = loss_of(objective, n)
    learnt = [hidden_ND, *head.trained]
    assert len(learnt) == (3 if trained else 1)
    whole = loss(head(hidden_ND), 0, n).sum()
    gradients = torch.autograd.grad(whole / 3, learnt)
    summed = chunked_sum(hidden_ND, head, loss)
    torch.testing.assert_close(summed, whole)
    for got, wanted in zip(torch.autograd.grad(summed / 3, learnt), gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_chunks_are_of_a_size_and_cover_every_position_once() -> None:
    seen: list[tuple[int, int, int]] = []

    def loss(logits_CV: Tensor, start: int, end: int) -> Tensor:
        seen.append((len(logits_CV), start, end))
        return logits_CV.sum(-1)

    chunked_sum(torch.randn(12, D), head_of(), loss)
    assert seen == [(5, 0, 5), (5, 5, 10), (2, 10, 12)]


def test_a_vocabulary_larger_than_a_chunk_is_taken_a_position_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunked, "MOST_LOGITS", V // 2)
    assert head_of().positions == 1


def test_without_gradients_the_value_is_the_same() -> None:
    hidden_ND, head, loss = torch.randn(12, D), head_of(trained=True), loss_of(CrossEntropy(), 12)
    with torch.no_grad():
        summed = chunked_sum(hidden_ND, head, loss)
    assert not summed.requires_grad
    torch.testing.assert_close(summed, loss(head(hidden_ND), 0, 12).sum().detach())


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_under_autocast_the_layer_computes_in_bfloat16_and_the_loss_does_not(
    trained: bool,
) -> None:
    hidden_ND = torch.randn(12, D, requires_grad=True)
    head, plain = head_of(trained=trained, autocast=torch.bfloat16), loss_of(ForwardKL(), 12)
    given: list[Tensor] = []

    def loss(logits_CV: Tensor, start: int, end: int) -> Tensor:
        given.append(logits_CV)
        return plain(logits_CV, start, end)

    learnt = [hidden_ND, *head.trained]
    gradients = torch.autograd.grad(plain(head(hidden_ND), 0, 12).sum(), learnt)
    summed = chunked_sum(hidden_ND, head, loss)
    assert summed.dtype == torch.float32
    assert {one.dtype for one in given} == {torch.float32}
    assert all(torch.equal(one, one.bfloat16().float()) for one in given)
    for got, wanted in zip(torch.autograd.grad(summed, learnt), gradients, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, atol=2e-2, rtol=2e-2)


def test_the_upstream_gradient_is_not_rounded_to_the_hidden_states_dtype() -> None:
    """A third in bfloat16 is off by 0.2 %, in every gradient alike."""
    hidden_ND = torch.randn(12, D).bfloat16().requires_grad_()
    head, loss = head_of(), loss_of(CrossEntropy(), 12)
    head.layer.bfloat16()
    summed = chunked_sum(hidden_ND, head, loss)
    (one,) = torch.autograd.grad(summed, [hidden_ND], retain_graph=True)
    (third,) = torch.autograd.grad(summed / 3, [hidden_ND])
    assert torch.equal(third, (one.float() / 3).bfloat16())


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_what_is_held_does_not_grow_with_positions_times_vocabulary(trained: bool) -> None:
    n = 60
    hidden_ND, head = torch.randn(n, D, requires_grad=True), head_of(trained=trained, bias=False)
    plain, largest = loss_of(ForwardKL(), n), 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    held: weakref.WeakSet[Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        held.add(kept)
        return kept

    def loss(logits_CV: Tensor, start: int, end: int) -> Tensor:
        nonlocal largest
        terms = plain(logits_CV, start, end)
        largest = max(largest, sum(kept.tensor.numel() for kept in held))
        return terms

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        summed = chunked_sum(hidden_ND, head, loss)
    after = sum(kept.tensor.numel() for kept in held)
    assert after == n * D + trained * V * D  # the gradients, for backward to scale
    assert POSITIONS * V < largest < 6 * POSITIONS * V < n * V
    summed.backward()


def test_tied_embeddings_get_the_gradient_of_both_their_uses() -> None:
    vocabulary = len(byte_tokenizer())
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )
    batch = collate([[5, 9], [8, 8, 8]], [[6, 2, 4], [7, 2]], pad_id=0)
    learnt = list(network.parameters())
    assert any(one is network.get_output_embeddings().weight for one in learnt)

    def loss(logits_CV: Tensor, start: int, end: int) -> Tensor:
        return CrossEntropy()(logits_CV, batch.completion_N[start:end])

    whole = loss(completion_logits(network, batch), 0, 5).sum()
    reading = read(network, batch)
    assert reading.head is not None
    assert reading.head.positions < 5
    summed = chunked_sum(reading.hidden_ND, reading.head, loss)
    torch.testing.assert_close(summed, whole)
    for got, wanted in zip(
        torch.autograd.grad(summed, learnt), torch.autograd.grad(whole, learnt), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("n", [1, 5, 12])
def test_what_is_kept_of_chunks_has_the_gradient_of_the_whole(n: int, trained: bool) -> None:
    hidden_ND, head = torch.randn(n, D, requires_grad=True), head_of(trained=trained)
    learnt = [hidden_ND, *head.trained]

    def keep(logits_CV: Tensor, start: int) -> Tensor:
        assert len(logits_CV) <= POSITIONS
        factor_C1 = torch.arange(start + 1, start + 1 + len(logits_CV))[:, None]
        return factor_C1 * logits_CV.log_softmax(-1)[:, :3]

    kept_NK = chunked.chunked(hidden_ND, head, keep)
    whole_NK = torch.arange(1, n + 1)[:, None] * head(hidden_ND).log_softmax(-1)[:, :3]
    torch.testing.assert_close(kept_NK, whole_NK)
    expected = torch.autograd.grad(whole_NK.square().sum(), learnt)
    for got, wanted in zip(
        torch.autograd.grad(kept_NK.square().sum(), learnt), expected, strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
