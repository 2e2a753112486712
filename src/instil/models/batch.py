"""Sequences that share a forward pass: padded, or packed into one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from instil.models.forest import merged


def shared_prefix(prompts: Sequence[list[int]]) -> int:
    """How many leading tokens all prompts share; at least one token of each prompt comes after."""
    first, last = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    shared = 0
    while shared < limit and first[shared] == last[shared]:
        shared += 1
    return shared


@dataclass(frozen=True)
class Batch:
    """Prompts with their completions for one forward pass, with N completion tokens in all.

    Padded (`collate`): B rows of at most L tokens. Packed (`pack`): all sequences one after another
    in one row, B = 1. Alone (`alone`): one sequence, as plainly as a model can be called.

    Attributes:
        input_ids_BL: Token ids without the shared prefix.
        attention_mask: Padded: 1 for tokens that may be read, shape (B, prefix + L). Packed: 0 or
            -inf, added to the attention scores, shape (1, 1, L, prefix + L); a single 0 if only
            `bounds` separates the sequences. Alone: None.
        position_ids_BL: Position of each token in its full sequence. Alone: None.
        predicts_BL: True where the logits predict a completion token: one position before it.
        completion_N: The completion tokens, one completion after another.
        tokens: Number of positions that hold a token, without the shared prefix and padding.
        bounds: Packed without a mask: the start of each segment, then the end of the row. A
            segment is a sequence, or a part of one that others share.
        parents: Packed without a mask: the segment that comes before each one in its sequences; -1
            for none. None: no segment has one.
        order_N: Packed: which of the selected logits belongs to each completion token. None: they
            have the same order.
    """

    input_ids_BL: Tensor
    attention_mask: Tensor | None
    position_ids_BL: Tensor | None
    predicts_BL: Tensor
    completion_N: Tensor
    tokens: int
    bounds: Tensor | None = None
    parents: Tensor | None = None
    order_N: Tensor | None = None


def alone(prompt: list[int], completion: list[int]) -> Batch:
    """One sequence without padding, prefix, mask or positions: what every model can read."""
    ids_BL = torch.tensor([prompt + completion[:-1]])
    predicts_BL = (torch.arange(ids_BL.shape[1]) >= len(prompt) - 1)[None]
    return Batch(
        input_ids_BL=ids_BL,
        attention_mask=None,
        position_ids_BL=None,
        predicts_BL=predicts_BL,
        completion_N=torch.tensor(completion),
        tokens=ids_BL.shape[1],
    )


def collate(
    prompts: Sequence[list[int]], completions: Sequence[list[int]], *, pad_id: int, prefix: int = 0
) -> Batch:
    """Joins each prompt with its completion and pads on the right.

    No scored token comes after the last completion token, so that token is not fed to the model.

    Args:
        prompts: Full prompts, in token ids.
        completions: One completion per prompt.
        pad_id: Any valid id. Padding is masked, and its logits are never used.
        prefix: Number of leading tokens that all prompts share and whose keys and values the model
            already has.
    """
    rows = [p[prefix:] + c[:-1] for p, c in zip(prompts, completions, strict=True)]
    length = max(map(len, rows))
    input_ids_BL = torch.full((len(rows), length), pad_id)
    mask_BL = torch.zeros((len(rows), length), dtype=torch.long)
    predicts_BL = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, (row, completion) in enumerate(zip(rows, completions, strict=True)):
        input_ids_BL[i, : len(row)] = torch.tensor(row)
        mask_BL[i, : len(row)] = 1
        predicts_BL[i, len(row) - len(completion) : len(row)] = True
    prefix_mask = torch.ones((len(rows), prefix), dtype=torch.long)
    return Batch(
        input_ids_BL=input_ids_BL,
        attention_mask=torch.cat([prefix_mask, mask_BL], dim=1),
        position_ids_BL=(prefix + torch.arange(length)).expand(len(rows), -1).contiguous(),
        predicts_BL=predicts_BL,
        completion_N=torch.tensor([token for completion in completions for token in completion]),
        tokens=sum(map(len, rows)),
    )


def pack(
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    *,
    prefix: int = 0,
    masked: bool = True,
    multiple: int = 1,
) -> Batch:
    """Joins each prompt with its completion and puts all of them into one row, without padding.

    Short rows of different length then cost no padding. Where sequences begin alike, their first
    tokens are there once; see `instil.models.forest`. A token reads only the shared prefix and the
    tokens before it in its own sequence.

    Args:
        prompts: Full prompts, in token ids.
        completions: One completion per prompt.
        prefix: Number of leading tokens that all prompts share and whose keys and values the model
            already has.
        masked: Make the mask, which grows with the square of the length. A model that reads the
            bounds needs no mask.
        multiple: Pad the row to a multiple of this length, with tokens that predict nothing and
            that no other token reads.
    """
    forest = merged(list(zip(prompts, completions, strict=True)), prefix)
    ids_L, depth_L = torch.from_numpy(forest.ids).long(), torch.from_numpy(forest.depths)
    lengths, parents = [len(segment.ids) for segment in forest.segments], forest.parents
    if padding := -forest.tokens % multiple:
        lengths, parents = [*lengths, padding], [*parents, -1]
        ids_L = torch.cat([ids_L, torch.zeros(padding, dtype=torch.long)])
        depth_L = torch.cat([depth_L, torch.arange(padding)])
    mask_LL = torch.zeros((1, 1))
    if masked:
        mask_LL = _unread(torch.tensor(lengths), parents, depth_L)
        mask_LL = torch.nn.functional.pad(mask_LL, (prefix, 0))
    places_N = torch.from_numpy(forest.predicting())
    predicts_BL = torch.zeros((1, len(ids_L)), dtype=torch.bool)
    predicts_BL[0, places_N] = True
    order_N = places_N.argsort().argsort()
    return Batch(
        input_ids_BL=ids_L[None],
        attention_mask=mask_LL[None, None],
        position_ids_BL=(prefix + depth_L)[None],
        predicts_BL=predicts_BL,
        completion_N=torch.tensor([token for completion in completions for token in completion]),
        tokens=forest.tokens,
        bounds=None if masked else torch.tensor([0, *accumulate(lengths)]),
        parents=None if masked or max(parents) < 0 else torch.tensor(parents),
        order_N=None if bool((order_N[1:] > order_N[:-1]).all()) else order_N,
    )


def _unread(lengths: Tensor, parents: Sequence[int], depth_L: Tensor) -> Tensor:
    """A mask to add to the attention scores: a token reads those before it in its sequence, (L, L)."""
    read_SS = torch.eye(len(lengths), dtype=torch.bool)
    for number, parent in enumerate(parents):
        if parent >= 0:
            read_SS[number] |= read_SS[parent]
    segment_L = torch.arange(len(lengths)).repeat_interleave(lengths)
    readable_LL = read_SS[segment_L][:, segment_L] & (depth_L[:, None] >= depth_L)
    return torch.zeros(readable_LL.shape).masked_fill(~readable_LL, -torch.inf)
