"""Attention over packed rows, one sequence at a time.

A packed row holds several sequences one after another. Each token reads only the tokens of its own
sequence. With a mask, attention still multiplies every token with every other token. If the row is
cut into its sequences, it does not. Attention over four mathematics answers in a row then costs an
eighth.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from typing_extensions import override

NAME = "instil_packed"
# transformers' name for the start of each packed sequence, followed by the end of the last one.
# Here the first start may be greater than 0: every sequence reads the tokens before it.
BOUNDS = "cu_seq_lens_q"
# Another of transformers' names. Here: the number of the first sequence that reads nothing before
# it. Without it, all of them read the tokens before the first start.
APART = "cu_seq_lens_k"
# Bytes per number from which a processor's fused attention is faster than plain products. With AVX2
# alone, plain products take 1.4 to 2.3 times as long in float32 and 3 to 30 times as long in
# bfloat16 (benchmarks/attention_speed.py). Where bfloat16 is fast, plain products are faster in it.
FUSED = 1 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 4
# Lengths are rounded up to a multiple of this number of tokens, where each new length makes a
# processor build new kernels.
LENGTHS = 16
# Most attention scores of one sequence that are held at once, over all heads: 128 MiB in bfloat16.
# Longer sequences use fused attention.
MOST_SCORES = 2**26
# Most tokens of short sequences that are multiplied together under a mask. One by one, 16 sequences
# of 20 tokens take two and a half times as long.
TOGETHER = 128


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attends as `sdpa` does, or within each sequence of a packed row.

    Args:
        module: The attention layer.
        query: Shape (B, heads, L, head size).
        key: Shape (B, key heads, S, head size), of the S tokens that are read.
        value: Shape (B, key heads, S, value's head size), of the same tokens.
        attention_mask: Not needed for packed sequences.
        settings: Options of `sdpa`; with `BOUNDS`, and perhaps `APART`, for a packed row.

    Returns:
        Shape (B, L, heads, value's head size); and no attention weights.
    """
    bounds, apart = settings.pop(BOUNDS, None), settings.pop(APART, None)
    if bounds is None:
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return attended, None
    scaling = settings.get("scaling") or query.shape[-1] ** -0.5
    on_cpu = query.device.type == "cpu" and not settings.get("dropout")
    on_cpu = on_cpu and query.shape[-1] == value.shape[-1]  # they differ in latent attention
    lead, *ends = bounds.tolist()
    runs = list(pairwise([0, *ends]))  # the tokens before the first sequence belong to it
    led = len(runs) if apart is None else int(apart)
    cached = key.shape[2] - query.shape[2]
    settings |= {"is_causal": True}
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast they may be wider
    fused = value.dtype.itemsize >= FUSED
    plainly = on_cpu and not fused and (query.requires_grad or bool(cached))
    widest = query.shape[1] * TOGETHER * (max(cached, lead) + TOGETHER)
    together = TOGETHER if (plainly or (on_cpu and fused)) and widest <= MOST_SCORES else 0
    pieces: list[Tensor] = []
    start = number = 0
    for lengths in _grouped(runs, together, cuts=(1, led) if lead else ()):
        end = start + sum(lengths)
        before = cached or (lead if 0 < number < led else 0)
        q = query[:, :, start:end]
        k, v = (_read(part, before, cached + start, cached + end) for part in (key, value))
        few = query.shape[1] * (end - start) * k.shape[2] <= MOST_SCORES
        if plainly and few:
            # No query reads the padding at the end. If there are few different lengths, oneDNN can
            # reuse its kernels.
            padding = -(end - start) % LENGTHS
            padded = (torch.nn.functional.pad(part, (0, 0, 0, padding)) for part in (q, k, v))
            attended = _Products.apply(*padded, scaling, [*lengths, padding])  # type: ignore[no-untyped-call]
            pieces.append(attended[:, : end - start])
        else:
            masked = before or len(lengths) > 1
            mask = _lower_right(lengths, before, query) if masked else None
            pieces.append(sdpa_attention_forward(module, q, k, v, mask, **settings)[0])
        start, number = end, number + len(lengths)
    return torch.cat(pieces, dim=1), None


def _grouped(
    runs: list[tuple[int, int]], together: int, *, cuts: Collection[int]
) -> Iterator[list[int]]:
    """Groups neighbouring short sequences for attention at once, and yields the groups' lengths.

    Args:
        runs: Start and end of each sequence, in tokens.
        together: Most tokens of a group; a longer sequence is a group of its own.
        cuts: Numbers of sequences with which a group begins.
    """
    group: list[int] = []
    for number, (start, end) in enumerate(runs):
        if group and (sum(group) + end - start > together or number in cuts):
            yield group
            group = []
        group.append(end - start)
    if group:
        yield group


def _read(part: Tensor, before: int, start: int, end: int) -> Tensor:
    """The keys or values that a sequence reads: those before all sequences, and its own."""
    own = part[:, :, start:end]
    return torch.cat([part[:, :, :before], own], dim=2) if before else own


def _unread(lengths: list[int], like: Tensor) -> Tensor:
    """A mask to add to the attention scores, shape (L, L).

    Each sequence reads only itself, and no token reads a later token.
    """
    length = sum(lengths)
    unread = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device)
    unread.triu_(1)
    for end in accumulate(lengths):
        unread[end:, :end] = -torch.inf
    return unread


def _lower_right(lengths: list[int], before: int, like: Tensor) -> Tensor:
    """The same mask for sequences that all read a prefix of `before` tokens, shape (1, 1, L, S)."""
    return torch.nn.functional.pad(_unread(lengths, like), (before, 0))[None, None]


class _Products(torch.autograd.Function):
    """Causal attention within each of several sequences, in plain matrix products.

    On a processor in bfloat16, the backward pass takes a third of the time of fused attention. The
    forward pass after a long prefix takes two thirds. There may be more keys than queries: the
    first keys come before the sequences, and all sequences read them. Queries that share a key head
    are multiplied with it as one matrix. The backward pass computes the attention weights again, so
    that no memory of the length squared is in use between the passes.
    """

    @staticmethod
    @override
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, lengths: list[int]
    ) -> Tensor:
        ctx.scaling, ctx.lengths = scaling, lengths
        ctx.save_for_backward(query, key, value)
        attended = _weights(query, key, scaling, lengths) @ value[0]
        return attended.view(query.shape[1:]).transpose(0, 1)[None]

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        weights = _weights(query, key, ctx.scaling, ctx.lengths)
        given = gradients[0][0].transpose(0, 1).reshape(len(key[0]), -1, query.shape[-1])
        at_value = weights.transpose(1, 2) @ given
        at_weights = given @ value[0].transpose(1, 2)
        at_scores = torch.ops.aten._softmax_backward_data(at_weights, weights, -1, weights.dtype)
        at_query = (at_scores @ key[0]).mul_(ctx.scaling).view(query.shape)
        at_key = at_scores.transpose(1, 2) @ query.reshape(len(key[0]), -1, query.shape[-1])
        return at_query, at_key.mul_(ctx.scaling)[None], at_value[None], None, None


def _weights(query: Tensor, key: Tensor, scaling: float, lengths: list[int]) -> Tensor:
    """Attention weights, shape (key heads, query heads per key head x L, S), in the query's dtype.

    A query reads the tokens before all sequences, and its own sequence up to itself. Scores are
    rounded to the query's dtype, as in transformers' eager attention. The softmax adds up in
    float32 internally. On the bundled model in bfloat16, targets then differ from those in float32
    by 0.0012 nats per token. With a fused kernel, whose scores are float32, they differ by 0.0013.
    """
    _, heads, length, size = query.shape
    keys = key.shape[2]
    scores = (query * scaling).reshape(len(key[0]), -1, size) @ key[0].transpose(1, 2)
    scores.view(heads, length, keys)[..., keys - length :].add_(_unread(lengths, query))
    return torch.softmax(scores, -1, out=scores)


def install(network: PreTrainedModel) -> None:
    """Makes a model attend to packed sequences one by one, if it can.

    For other models, a mask separates the sequences.
    """
    parameters = inspect.signature(network.forward).parameters.values()
    if network.config._attn_implementation == "sdpa" and any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters
    ):
        network.set_attn_implementation(NAME)


def reads_bounds(network: Any) -> bool:
    """Whether a model accepts the positions where packed sequences begin."""
    return bool(network.config._attn_implementation == NAME)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
