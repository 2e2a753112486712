"""Attention over packed rows, against the plain attention of each sequence alone."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tests.conftest import byte_tokenizer, tiny_llama
from tests.small import pairs_of
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from instil.models import attention, forest
from instil.models.attention import BOUNDS, PARENTS, attend, install, reads_bounds
from instil.models.batch import pack
from instil.models.forward import completion_logits
from instil.models.load import LanguageModel

LENGTHS = [5, 1, 17, 2, 1]
HEADS = [(4, 4), (4, 2), (6, 1)]  # of queries, of keys
SIZE = 8


@pytest.fixture(params=[1, 9], ids=["fused", "products"])
def each_attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the dtype, both ways to compute it, one after the other."""
    monkeypatch.setattr(attention, "FUSED", request.param)


def drawn(
    heads: int, shared: int, *, prefix: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Query, key and value of a row that holds sequences of `LENGTHS` after a prefix."""
    length = sum(LENGTHS)
    shapes = [(heads, length), (shared, prefix + length), (shared, prefix + length)]
    return [torch.randn(1, n, size, SIZE, dtype=dtype) for n, size in shapes]


def packed(
    query: Tensor, key: Tensor, value: Tensor, *, lengths: list[int] = LENGTHS, **settings: Any
) -> Tensor:
    """What the model's layer gets, (B, L, heads, size)."""
    layer = torch.nn.Module()
    layer.num_key_value_groups = query.shape[1] // key.shape[1]  # type: ignore[assignment]
    bounds = torch.tensor([0, *accumulate(lengths)])
    attended, _ = attend(layer, query, key, value, None, **{BOUNDS: bounds}, **settings)
    return attended


def alone(query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
    """The same, each sequence by itself: the whole prefix, then its own tokens up to the one that reads."""
    prefix = key.shape[2] - query.shape[2]
    key, value = (
        part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value)
    )
    attended = []
    for start, end in pairwise([0, *accumulate(LENGTHS)]):
        readable = [*range(prefix), *range(prefix + start, prefix + end)]
        seen = torch.ones(end - start, len(readable)).tril(prefix).bool()
        attended.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, readable],
                value[:, :, readable],
                attn_mask=seen,
                scale=scaling,
            )
        )
    return torch.cat(attended, dim=2).transpose(1, 2)


@pytest.mark.usefixtures("each_attention")
@pytest.mark.parametrize(("most", "together"), [(0, 128), (2**26, 0), (2**26, 18), (2**26, 128)])
@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize(("heads", "shared"), HEADS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_packed_sequences_get_the_attention_and_gradients_of_each_alone(
    heads: int,
    shared: int,
    dtype: torch.dtype,
    within: float,
    scaling: float | None,
    most: int,
    together: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "MOST_SCORES", most)
    monkeypatch.setattr(attention, "TOGETHER", together)
    given = [part.requires_grad_() for part in drawn(heads, shared, dtype=dtype)]
    expected = alone(*given, scaling)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weight).sum(), given)
    attended = packed(*given, scaling=scaling)
    torch.testing.assert_close(attended, expected, atol=within, rtol=within)
    for got, wanted in zip(
        torch.autograd.grad((attended * weight).sum(), given), gradients, strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=within, rtol=within)
    with torch.no_grad():
        torch.testing.assert_close(
            packed(*given, scaling=scaling), expected, atol=within, rtol=within
        )


@pytest.mark.parametrize(
    ("dtype", "by_products"),
    [(torch.float64, False), (torch.float32, False), (torch.bfloat16, True)],
)
@pytest.mark.parametrize(("grad", "prefix"), [(False, 3), (True, 0)])
def test_a_processor_of_fast_bfloat16_multiplies_plainly_in_it_alone(
    dtype: torch.dtype, by_products: bool, grad: bool, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "FUSED", 4)
    plainly = Mock(wraps=attention._weights)
    monkeypatch.setattr(attention, "_weights", plainly)
    packed(*(part.requires_grad_(grad) for part in drawn(4, 2, prefix=prefix, dtype=dtype)))
    assert plainly.called == by_products


@pytest.mark.usefixtures("each_attention")
@pytest.mark.parametrize("prefix", [0, 3])
def test_query_and_key_may_be_wider_than_the_value(prefix: int) -> None:
    query, key, value = drawn(4, 2, prefix=prefix, dtype=torch.float32)
    attended = packed(query.requires_grad_(), key, value.bfloat16())
    assert attended.dtype == torch.bfloat16
    torch.testing.assert_close(attended.float(), alone(query, key, value), atol=3e-2, rtol=3e-2)


def test_the_plain_products_have_the_gradient_of_what_they_compute() -> None:
    given = [
        torch.randn(1, heads, 4, 3, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)
    ]
    assert torch.autograd.gradcheck(
        lambda q, k, v: attention._Products.apply(q, k, v, 0.6, [3, 1]), given
    )


@pytest.mark.usefixtures("each_attention")
def test_nothing_of_the_square_of_the_length_is_kept_for_backward() -> None:
    given = [torch.randn(1, 2, 64, SIZE, requires_grad=True) for _ in range(3)]
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attended = packed(*given, lengths=[64])
    assert len(kept) >= 3  # query, key and value are
    assert max(kept) == given[0].numel()
    attended.sum().backward()


@pytest.mark.usefixtures("each_attention")
def test_keys_alone_may_be_trained() -> None:
    query, key, value = drawn(4, 2)
    key.requires_grad_()
    (wanted,) = torch.autograd.grad(alone(query, key, value).square().sum(), [key])
    (got,) = torch.autograd.grad(packed(query, key, value).square().sum(), [key])
    torch.testing.assert_close(got, wanted)


@pytest.mark.usefixtures("each_attention")
def test_values_of_another_width_than_the_queries_are_attended_to() -> None:
    query, key, value = drawn(4, 2)
    value = value[..., : SIZE // 2].contiguous()
    for given in (query, query.clone().requires_grad_()):
        torch.testing.assert_close(packed(given, key, value), alone(query, key, value))


@pytest.mark.usefixtures("each_attention")
@pytest.mark.parametrize("together", [0, 18, 128])
@pytest.mark.parametrize("prefix", [1, 3, 200])
@pytest.mark.parametrize(("heads", "shared"), HEADS)
@pytest.mark.parametrize(
    ("dtype", "sharpness", "within"),
    [(torch.float32, 1.0, 1e-5), (torch.float32, 20.0, 1e-5), (torch.bfloat16, 1.0, 2e-2)],
)
def test_after_a_prefix_each_sequence_reads_it_and_itself(
    heads: int,
    shared: int,
    prefix: int,
    sharpness: float,
    dtype: torch.dtype,
    within: float,
    together: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "TOGETHER", together)
    query, key, value = drawn(heads, shared, prefix=prefix, dtype=dtype)
    query = query * sharpness
    expected = alone(query.float(), key.float(), value.float())
    attended = packed(query, key, value)
    assert attended.dtype == dtype
    torch.testing.assert_close(attended.float(), expected, atol=within, rtol=within)


@pytest.mark.usefixtures("each_attention")
@pytest.mark.parametrize("most", [0, attention.MOST_SCORES])
@pytest.mark.parametrize("grad", [False, True])
def test_after_a_prefix_the_scaling_is_the_layers_own(
    grad: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are too many scores, the prefix is read under a mask instead."""
    monkeypatch.setattr(attention, "MOST_SCORES", most)
    given = [part.requires_grad_(grad) for part in drawn(4, 2, prefix=30, dtype=torch.float32)]
    expected = alone(*given, 0.05)
    attended = packed(*given, scaling=0.05)
    torch.testing.assert_close(attended, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(attended, packed(*given), atol=1e-2)
    if grad:
        for got, wanted in zip(
            torch.autograd.grad(attended.square().sum(), given),
            torch.autograd.grad(expected.square().sum(), given),
            strict=True,
        ):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_row_without_bounds_is_attended_to_as_before() -> None:
    query, key, value = drawn(4, 4)
    attended, _ = attend(torch.nn.Module(), query, key, value, None, is_causal=True)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(attended, expected.transpose(1, 2))


class WithoutMore(LlamaForCausalLM):
    """A model whose forward pass hands nothing on."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None) -> Any:  # type: ignore[override]
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


def network_of(kind: type[LlamaForCausalLM], implementation: str) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        attn_implementation=implementation,
    )
    return kind(config)


@pytest.mark.parametrize(
    ("kind", "implementation", "installed"),
    [
        (LlamaForCausalLM, "sdpa", True),
        (LlamaForCausalLM, "eager", False),
        (WithoutMore, "sdpa", False),
    ],
)
def test_only_a_model_that_hands_the_bounds_on_is_told_of_them(
    kind: type[LlamaForCausalLM], implementation: str, installed: bool
) -> None:
    network = network_of(kind, implementation)
    install(network)
    assert reads_bounds(network) == installed
    expected = attention.NAME if installed else implementation
    assert network.config._attn_implementation == expected


@pytest.mark.usefixtures("each_attention")
def test_bounds_say_what_a_mask_says(any_model: LanguageModel) -> None:
    pairs = pairs_of(any_model)
    prompts, completions = [p.student_prompt for p in pairs], [p.completion for p in pairs]
    with torch.no_grad():
        by_mask, by_bounds = (
            completion_logits(any_model.network, pack(prompts, completions, masked=masked))
            for masked in (True, False)
        )
    assert reads_bounds(any_model.network)
    torch.testing.assert_close(by_bounds, by_mask, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("each_attention")
def test_bounds_give_the_gradients_that_a_mask_gives() -> None:
    network = tiny_llama(len(byte_tokenizer()))
    install(network)
    gradients = []
    for masked in (True, False):
        batch = pack([[5, 9, 7], [8], [4] * 20], [[6, 2], [7, 3, 2], [2]], masked=masked)
        logits_NV = completion_logits(network, batch)
        loss = torch.nn.functional.cross_entropy(logits_NV, batch.completion_N.to(logits_NV.device))
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    for by_mask, by_bounds in zip(*gradients, strict=True):
        torch.testing.assert_close(by_bounds, by_mask, atol=1e-5, rtol=1e-4)


TURNS = [
    ([5, 9, 7, 3, 8], [6, 2]),
    ([5, 9, 7, 3, 8, 6, 2, 4], [7]),  # continues the first one's completion
    ([5, 9, 7, 3, 8, 1, 1, 4], [2, 9, 3]),  # continues another one
    ([5, 9, 7, 3, 8, 1, 1, 4, 6, 6], [8, 8]),
    ([12, 3, 5], [1, 4]),  # begins otherwise
    ([5, 9, 7, 3, 8, 6], [3]),
]


@pytest.mark.usefixtures("each_attention")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("together", [0, 128])
def test_what_sequences_begin_with_may_be_there_once(
    any_model: LanguageModel, masked: bool, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "TOGETHER", together)
    prompts, completions = zip(*TURNS, strict=True)
    logits, gradients, tokens = [], [], []
    for least in (1, 3, 100):
        monkeypatch.setattr(forest, "LEAST_SHARED", least)
        batch = pack(prompts, completions, masked=masked, multiple=4)
        assert batch.completion_N.tolist() == [6, 2, 7, 2, 9, 3, 8, 8, 1, 4, 3]
        tokens.append(batch.tokens)
        logits_NV = completion_logits(any_model.network, batch)
        loss = torch.nn.functional.cross_entropy(logits_NV, batch.completion_N.to(logits_NV.device))
        weights = list(any_model.network.parameters())
        logits.append(logits_NV.detach())
        gradients.append(torch.autograd.grad(loss, weights, allow_unused=True))
    assert tokens == sorted(tokens)
    assert tokens[0] < tokens[-1]
    for once, of_once in zip(logits[:-1], gradients[:-1], strict=True):
        torch.testing.assert_close(once, logits[-1], atol=1e-4, rtol=0)
        for one, other in zip(of_once, gradients[-1], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.usefixtures("each_attention")
def test_a_segment_is_attended_to_the_same_way_whatever_is_multiplied_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [part.requires_grad_() for part in drawn(4, 2)]
    settings = {
        BOUNDS: torch.tensor([0, *accumulate(LENGTHS)]),
        PARENTS: torch.tensor([-1, 0, 1, 1, -1]),
    }
    layer = torch.nn.Module()
    layer.num_key_value_groups = 2  # type: ignore[assignment]
    made = []
    for together in (0, 128):
        monkeypatch.setattr(attention, "TOGETHER", together)
        attended, _ = attend(layer, *given, None, **settings)
        made.append([attended, *torch.autograd.grad(attended.square().sum(), given)])
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
    # A segment right after its parent is one sequence with it.
    joined = packed(*given, lengths=[LENGTHS[0] + LENGTHS[1]])
    torch.testing.assert_close(made[0][0][:, :6], joined[:, :6])
