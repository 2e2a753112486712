"""Attention over packed rows, one segment at a time.

A packed row holds several sequences one after another. Each token reads only the tokens of its own
sequence. With a mask, attention still multiplies every token with every other token. If the row is
cut into its sequences, it does not. Attention over four mathematics answers in a row then costs an
eighth. Sequences that begin alike share a segment, which is there once.
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
# transformers' name for the start of each packed sequence, followed by the end of the last one.
# Here: of each segment.
BOUNDS = "cu_seq_lens_q"
# Another of transformers' names. Here: the segment that comes before each one in its sequences, -1
# for none. Without it, no segment has one.
PARENTS = "cu_seq_lens_k"
# Attribute of keys whose rows all read a prefix: its keys and values.
PREFIX = "instil_prefix"
# Bytes per number from which a processor's fused attention is faster than plain products. With AVX2
# alone, plain products take 1.4 to 2.3 times as long in float32 and 3 to 30 times as long in
# bfloat16 (benchmarks/attention_speed.py). Where bfloat16 is fast, plain products are faster in it.
FUSED = 1 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 4
# Lengths are rounded up to a multiple of this number of tokens, where each new length makes a
# processor build new kernels.
LENGTHS = 16
# Most attention scores of one segment that are held at once, over all heads: 128 MiB in bfloat16.
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
        settings: Options of `sdpa`; with `BOUNDS`, and perhaps `PARENTS`, for a packed row.

    Returns:
        Shape (B, L, heads, value's head size); and no attention weights.
    """
    bounds, above = settings.pop(BOUNDS, None), settings.pop(PARENTS, None)
    prefix = getattr(key, PREFIX, None)
    if prefix is not None:
        scaling = settings.get("scaling") or query.shape[-1] ** -0.5
        return _after(prefix, query, key, value, attention_mask, scaling), None
    if bounds is None:
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return attended, None
    scaling = settings.get("scaling") or query.shape[-1] ** -0.5
    on_cpu = query.device.type == "cpu" and not settings.get("dropout")
    on_cpu = on_cpu and query.shape[-1] == value.shape[-1]  # they differ in latent attention
    runs = list(pairwise(bounds.tolist()))
    parents = [-1] * len(runs) if above is None else above.tolist()
    cached = key.shape[2] - query.shape[2]
    shared = _shared(runs, parents, cached)
    settings |= {"is_causal": True}
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast they may be wider
    fused = value.dtype.itemsize >= FUSED
    plainly = on_cpu and not fused and (query.requires_grad or bool(cached))
    longest = max(sum(end - start for start, end in before) for before in shared.values())
    widest = query.shape[1] * TOGETHER * (longest + TOGETHER)
    together = TOGETHER if (plainly or (on_cpu and fused)) and widest <= MOST_SCORES else 0
    pieces: list[Tensor] = []
    start = number = 0
    for lengths in _grouped(runs, parents, together):
        end, before = start + sum(lengths), shared[parents[number]]
        q = query[:, :, start:end]
        k, v = (_read(part, [*before, (cached + start, cached + end)]) for part in (key, value))
        few = query.shape[1] * (end - start) * k.shape[2] <= MOST_SCORES
        if plainly and few:
            # No query reads the padding at the end. If there are few different lengths, oneDNN can
            # reuse its kernels.
            padding = -(end - start) % LENGTHS
            padded = (torch.nn.functional.pad(part, (0, 0, 0, padding)) for part in (q, k, v))
            attended = _Products.apply(*padded, scaling, [*lengths, padding])  # type: ignore[no-untyped-call]
            pieces.append(attended[:, : end - start])
        else:
            first = k.shape[2] - (end - start)
            masked = first or len(lengths) > 1
            mask = _lower_right(lengths, first, query) if masked else None
            pieces.append(sdpa_attention_forward(module, q, k, v, mask, **settings)[0])
        start, number = end, number + len(lengths)
    return torch.cat(pieces, dim=1), None


def beside(key: Tensor, prefix: tuple[Tensor, Tensor]) -> Tensor:
    """Marks the keys of some rows: before them, all rows read the keys and values of a prefix.

    Args:
        key: Shape (B, key heads, S, head size).
        prefix: Keys and values, shape (1, key heads, P, head size).
    """
    setattr(key, PREFIX, prefix)
    return key


def _after(
    prefix: tuple[Tensor, Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
) -> Tensor:
    """Attention to a prefix that all rows read, and to each row's own tokens, (B, L, heads, size).

    The prefix is there once, and all rows are multiplied with it at once. The two parts are put
    together by the sums of their weights, as in blockwise attention (Dao et al. 2022,
    arXiv:2205.14135, section 3.1).

    Args:
        prefix: Keys and values, shape (1, key heads, P, head size).
        query: Shape (B, heads, L, head size).
        key: Shape (B, key heads, S, head size).
        value: The same shape.
        attention_mask: For the prefix and the rows' own keys, shape (B, 1, L, P + S). A row reads
            the whole prefix.
        scaling: Factor of the scores.
    """
    rows, heads, length, size = query.shape
    shared = key.shape[1]
    query = query.to(value.dtype)
    # For each key head the queries of all rows, (key heads, B x heads per key head x L, head size).
    of_head = query.reshape(rows, shared, -1, size)
    together = of_head.transpose(0, 1).reshape(shared, -1, size)
    before, first = (
        part.reshape(shared, rows, -1, part.shape[-1]).transpose(0, 1)
        for part in _whole(together, *prefix, scaling)
    )
    own = (of_head @ key.transpose(2, 3)).float() * scaling
    if attention_mask is not None:
        mask = attention_mask[..., prefix[0].shape[2] :]
        unread = mask.logical_not() if mask.dtype == torch.bool else mask < 0
        per_head = own.view(rows, shared, -1, length, own.shape[-1])
        per_head.masked_fill_(unread[:, :, None], -torch.inf)
    last = own.logsumexp(-1, keepdim=True)
    after = own.sub_(last).exp_().nan_to_num_(0.0).to(value.dtype) @ value
    attended = torch.lerp(before, after, torch.sigmoid(last - first).to(value.dtype))
    return attended.reshape(rows, heads, length, -1).transpose(1, 2)


def _whole(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention of queries that all read all keys, and the logarithm of the sum of their weights.

    On a processor a fused kernel takes a third of the time of plain products.

    Args:
        query: Shape (key heads, Q, head size).
        key: Shape (1, key heads, P, head size).
        value: The same shape.
        scaling: Factor of the scores.

    Returns:
        Shapes (key heads, Q, head size) and (key heads, Q, 1).
    """
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        attended, sums = fused(query[None], key, value, scale=scaling)
        return attended[0], sums[0].unsqueeze(-1)
    scores = (query @ key[0].transpose(1, 2)).float() * scaling
    sums = scores.logsumexp(-1, keepdim=True)
    return (scores - sums).exp_().to(value.dtype) @ value[0], sums


def _shared(
    runs: list[tuple[int, int]], parents: list[int], cached: int
) -> dict[int, list[tuple[int, int]]]:
    """For each parent, and for -1, the keys that its children read before their own.

    Args:
        runs: Start and end of each segment, in tokens.
        parents: The segment before each one; -1 for none.
        cached: Keys before all segments, which all of them read.

    Returns:
        Number of a segment -> starts and ends of the keys.
    """
    known: dict[int, list[tuple[int, int]]] = {-1: [(0, cached)] if cached else []}
    for number in sorted({*parents} - {-1}):  # a parent comes before its children
        before = known[parents[number]]
        start, end = (cached + place for place in runs[number])
        if before and before[-1][1] == start:  # the keys stand side by side
            before, start = before[:-1], before[-1][0]
        known[number] = [*before, (start, end)]
    return known


def _grouped(runs: list[tuple[int, int]], parents: list[int], together: int) -> Iterator[list[int]]:
    """Groups neighbouring short segments for attention at once, and yields the groups' lengths.

    Args:
        runs: Start and end of each segment, in tokens.
        parents: The segment before each one; those of a group have the same.
        together: Most tokens of a group; a longer segment is a group of its own.
    """
    group: list[int] = []
    for number, (start, end) in enumerate(runs):
        new = number and parents[number] != parents[number - 1]
        if group and (sum(group) + end - start > together or new):
            yield group
            group = []
        group.append(end - start)
    if group:
        yield group


def _read(part: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """The keys or values that a segment reads: those before it, and its own."""
    pieces = [part[:, :, start:end] for start, end in runs]
    return torch.cat(pieces, dim=2) if len(pieces) > 1 else pieces[0]


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
