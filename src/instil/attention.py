"""Attention over packed rows, each sequence by itself.

A packed row holds several sequences one after another, and a token reads those of its own sequence only. Under a mask,
attention still multiplies every token with every other one; cut into its sequences it does not, and four answers of
mathematics in a row then cost an eighth.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
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
# Tokens: lengths are filled up to a multiple of it where each new one costs a processor new kernels.
LENGTHS = 16


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
    if cached and on_cpu and not query.requires_grad:
        return _after_prefix(query, key, value, runs, scaling), None
    settings |= {"is_causal": True}
    pieces = []
    for start, end in runs:
        before = cached or (lead if start else 0)
        q = query[:, :, start:end]
        k, v = (_read(part, before, cached + start, cached + end) for part in (key, value))
        if on_cpu and query.requires_grad and not cached:
            q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast they may be wider
            # No query reads what fills up at the end; few different lengths let oneDNN use its kernels again.
            filling = -(end - start) % LENGTHS
            filled = (torch.nn.functional.pad(part, (0, 0, 0, filling)) for part in (q, k, v))
            made = _Products.apply(*filled, scaling)  # type: ignore[no-untyped-call]
            pieces.append(made[:, : end - start])
        else:
            mask = _lower_right(end - start, before, query) if before else None
            pieces.append(sdpa_attention_forward(module, q, k, v, mask, **settings)[0])
    return torch.cat(pieces, dim=1), None


def _read(part: Tensor, before: int, start: int, end: int) -> Tensor:
    """The keys or values that a sequence reads: those that come before all sequences, and its own."""
    own = part[:, :, start:end]
    return torch.cat([part[:, :, :before], own], dim=2) if before else own


def _lower_right(length: int, before: int, like: Tensor) -> Tensor:
    """What is added to the scores of a sequence that stands after a prefix."""
    unread = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device).triu(1)
    return torch.nn.functional.pad(unread, (before, 0))[None, None]


def _after_prefix(
    query: Tensor, key: Tensor, value: Tensor, runs: list[tuple[int, int]], scaling: float
) -> Tensor:
    """All sequences read the prefix at once, each its own tokens alone; their log-sum-exps say how the two weigh.

    Queries that share a key head stand side by side, so that the prefix is read once for all of them.
    """
    _, heads, length, size = query.shape
    shared, prefix = key.shape[1], key.shape[2] - length
    grouped = query.reshape(1, shared, -1, size)
    far, far_weight = _fused(
        grouped, key[:, :, :prefix], value[:, :, :prefix], scaling=scaling, causal=False
    )
    far, far_weight = far.reshape(query.shape), far_weight.reshape(1, heads, length)
    own_key, own_value = (
        part[:, :, prefix:].repeat_interleave(heads // shared, dim=1) for part in (key, value)
    )
    near, near_weight = zip(
        *(
            _fused(
                *(part[:, :, start:end] for part in (query, own_key, own_value)),
                scaling=scaling,
                causal=True,
            )
            for start, end in runs
        ),
        strict=True,
    )
    share = torch.sigmoid(far_weight - torch.cat(near_weight, dim=2))[..., None]
    attended = torch.lerp(torch.cat(near, dim=2).float(), far.float(), share)
    return attended.to(value.dtype).transpose(1, 2)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention on a processor, and the log-sum-exp of each query's scores, shape (1, heads, L), float32."""
    attended, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=None, scale=scaling
    )
    return attended, weight.reshape(query.shape[:3])


class _Products(torch.autograd.Function):
    """Causal attention of one sequence in plain products: on a processor its backward takes a third of the fused one's time.

    There may be more keys than queries; the first of them stand before the sequence and are read by all of it. Queries that share a key head are multiplied with it as one matrix. Backward computes the weights again, so that the
    square of the length is nowhere kept.
    """

    @staticmethod
    @override
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        ctx.scaling = scaling
        ctx.save_for_backward(query, key, value)
        attended = _weights(query, key, ctx.scaling) @ value[0]
        return attended.view(query.shape[1:]).transpose(0, 1)[None]

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        weights = _weights(query, key, ctx.scaling)
        given = gradients[0][0].transpose(0, 1).reshape(len(key[0]), -1, query.shape[-1])
        at_value = weights.transpose(1, 2) @ given
        at_weights = given @ value[0].transpose(1, 2)
        at_scores = torch.ops.aten._softmax_backward_data(at_weights, weights, -1, weights.dtype)
        at_query = (at_scores @ key[0]).mul_(ctx.scaling).view(query.shape)
        at_key = at_scores.transpose(1, 2) @ query.reshape(len(key[0]), -1, query.shape[-1])
        return at_query, at_key.mul_(ctx.scaling)[None], at_value[None], None


def _weights(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Attention weights, shape (key heads, query heads a key head x L, S), in the query's dtype.

    The last query reads all S keys, and each one before it one less. The softmax adds up in float32 within itself, so wider scores would only be rounded later.
    """
    _, heads, length, size = query.shape
    keys = key.shape[2]
    scores = (query * scaling).reshape(len(key[0]), -1, size) @ key[0].transpose(1, 2)
    unread = torch.full((length, keys), -torch.inf, dtype=query.dtype, device=query.device)
    scores.view(heads, length, keys).add_(unread.triu_(1 + keys - length))
    return scores.softmax(-1)


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
