"""Attention over packed rows, each sequence by itself.

A packed row holds several sequences one after another, and a token reads those of its own sequence only. Under a mask,
attention still multiplies every token with every other one; cut into its sequences it does not, and four answers of
mathematics in a row then cost an eighth.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from typing_extensions import override

NAME = "instil_packed"
# What transformers calls the first position of each packed sequence, with the end of the last one. Here the first may be behind
# the row's begin: what stands before it is read by every sequence.
BOUNDS = "cu_seq_lens_q"
# Bytes of a number from which on a processor's fused attention is the faster one. With AVX2 alone, plain products take 1.4 to 2.3 times as
# long in float32 and 3 to 30 times in bfloat16 (benchmarks/attention_speed.py); where bfloat16 is fast, they are faster in it.
FUSED = 1 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 4
# Tokens: lengths are filled up to a multiple of it where each new one costs a processor new kernels.
LENGTHS = 16
# Scores of one sequence that may be there at once, of all heads: 128 MiB in bfloat16. Longer ones are left to fused attention.
MOST_SCORES = 2**26
# Tokens of short sequences that are multiplied together under a mask: one by one, 16 of 20 tokens take two and a half times as long.
TOGETHER = 128


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """As `sdpa`, or, where the row's sequences are known, that for each of them.

    Args:
        module: The layer.
        query: Shape (B, heads, L, head size).
        key: The same, of what is read.
        value: The same.
        attention_mask: Not needed for packed sequences.
        settings: With `BOUNDS`, a packed row.

    Returns:
        Shape (B, L, heads, head size); no weights.
    """
    bounds = settings.pop(BOUNDS, None)
    if bounds is None:
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return attended, None
    scaling = settings.get("scaling") or query.shape[-1] ** -0.5
    on_cpu = query.device.type == "cpu" and not settings.get("dropout")
    on_cpu = on_cpu and query.shape[-1] == value.shape[-1]  # not so in latent attention
    lead, *ends = bounds.tolist()
    runs = list(pairwise([0, *ends]))  # what stands before the first sequence belongs to it
    cached = key.shape[2] - query.shape[2]
    settings |= {"is_causal": True}
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast they may be wider
    fused = value.dtype.itemsize >= FUSED
    plainly = on_cpu and not fused and (query.requires_grad or bool(cached))
    widest = query.shape[1] * TOGETHER * (max(cached, lead) + TOGETHER)
    together = TOGETHER if (plainly or (on_cpu and fused)) and widest <= MOST_SCORES else 0
    pieces: list[Tensor] = []
    for lengths in _grouped(runs, together, first_alone=lead > 0):
        start = sum(piece.shape[1] for piece in pieces)
        end = start + sum(lengths)
        before = cached or (lead if start else 0)
        q = query[:, :, start:end]
        k, v = (_read(part, before, cached + start, cached + end) for part in (key, value))
        few = query.shape[1] * (end - start) * k.shape[2] <= MOST_SCORES
        if plainly and few:
            # No query reads what fills up at the end; few different lengths let oneDNN use its kernels again.
            filling = -(end - start) % LENGTHS
            filled = (torch.nn.functional.pad(part, (0, 0, 0, filling)) for part in (q, k, v))
            made = _Products.apply(*filled, scaling, [*lengths, filling])  # type: ignore[no-untyped-call]
            pieces.append(made[:, : end - start])
        else:
            masked = before or len(lengths) > 1
            mask = _lower_right(lengths, before, query) if masked else None
            pieces.append(sdpa_attention_forward(module, q, k, v, mask, **settings)[0])
    return torch.cat(pieces, dim=1), None


def _grouped(
    runs: list[tuple[int, int]], together: int, *, first_alone: bool
) -> Iterator[list[int]]:
    """Lengths of the sequences that are attended to at once: short neighbours, of so many tokens in all."""
    group: list[int] = []
    for number, (start, end) in enumerate(runs):
        if group and (sum(group) + end - start > together or (number == 1 and first_alone)):
            yield group
            group = []
        group.append(end - start)
    if group:
        yield group


def _read(part: Tensor, before: int, start: int, end: int) -> Tensor:
    """The keys or values that a sequence reads: those that come before all sequences, and its own."""
    own = part[:, :, start:end]
    return torch.cat([part[:, :, :before], own], dim=2) if before else own


def _unread(lengths: list[int], like: Tensor) -> Tensor:
    """What is added to the scores, shape (L, L), so that each of these sequences reads itself alone, and nothing that follows."""
    length = sum(lengths)
    unread = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device)
    unread.triu_(1)
    for end in accumulate(lengths):
        unread[end:, :end] = -torch.inf
    return unread


def _lower_right(lengths: list[int], before: int, like: Tensor) -> Tensor:
    """The same where the sequences stand after a prefix, which all of them read."""
    return torch.nn.functional.pad(_unread(lengths, like), (before, 0))[None, None]


class _Products(torch.autograd.Function):
    """Causal attention of sequences of these lengths, each to itself, in plain products.

    On a processor in bfloat16, its backward takes a third of the fused one's time, its forward after a long prefix two thirds. There may
    be more keys than queries: the first of them stand before the sequences and are read by all of them. Queries that share a key head
    are multiplied with it as one matrix. Backward computes the weights again, so that the square of the length is nowhere kept.
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
    """Attention weights, shape (key heads, query heads a key head x L, S), in the query's dtype.

    A query reads what stands before all sequences, and its own up to itself. Scores are rounded to the query's dtype, as in transformers'
    eager attention; the softmax adds up in float32 within itself. On the bundled model in bfloat16, targets are then no further from
    float32's (0.0012 nats a token) than with a fused kernel, which keeps scores in float32 (0.0013).
    """
    _, heads, length, size = query.shape
    keys = key.shape[2]
    scores = (query * scaling).reshape(len(key[0]), -1, size) @ key[0].transpose(1, 2)
    scores.view(heads, length, keys)[..., keys - length :].add_(_unread(lengths, query))
    return torch.softmax(scores, -1, out=scores)


def install(network: PreTrainedModel) -> None:
    """Lets a model attend to packed sequences one by one, if it can; where not, a mask keeps them apart as before."""
    takes = inspect.signature(network.forward).parameters.values()
    if network.config._attn_implementation == "sdpa" and any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in takes
    ):
        network.set_attn_implementation(NAME)


def reads_bounds(network: Any) -> bool:
    """Whether a model can be told where packed sequences begin."""
    return bool(network.config._attn_implementation == NAME)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
