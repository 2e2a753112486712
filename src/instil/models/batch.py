"""Sequences that share a forward pass: padded, or packed into one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


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
        completion_N: The completion tokens, in the order in which `predicts_BL` selects their
            logits.
        tokens: Number of positions that hold a token, without the shared prefix and padding.
        bounds: Packed without a mask: the start of each sequence, then the end of the row. All
            sequences read the tokens before the first start.
        apart: Packed without a mask: the number of the first sequence that does not read them.
            None: all do.
    """

    input_ids_BL: Tensor
    attention_mask: Tensor | None
    position_ids_BL: Tensor | None
    predicts_BL: Tensor
    completion_N: Tensor
    tokens: int
    bounds: Tensor | None = None
    apart: Tensor | None = None


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
    lead: int = 0,
    led: int | None = None,
) -> Batch:
    """Joins each prompt with its completion and puts all of them into one row, without padding.

    A token reads only the shared prefix and the tokens of its own sequence. Short rows of different
    length then cost no padding.

    Args:
        prompts: Full prompts, in token ids.
        completions: One completion per prompt.
        prefix: Number of leading tokens that all prompts share and whose keys and values the model
            already has.
        masked: Make the mask, which grows with the square of the length. A model that reads the
            bounds needs no mask.
        multiple: Pad the row to a multiple of this length, with tokens that predict nothing and
            that no other token reads.
        lead: Number of leading tokens that prompts share, placed once before all sequences.
            Requires `masked` False and `prefix` 0.
        led: How many prompts share them: the first ones. The others are whole. None: all.
    """
    assert not lead or not (prefix or masked)
    # The first sequence holds the lead.
    led = len(prompts) if led is None or not lead else led
    begins = [prefix, *[prefix + lead] * (led - 1), *[prefix] * (len(prompts) - led)]
    rows = [p[b:] + c[:-1] for b, p, c in zip(begins, prompts, completions, strict=True)]
    ends = list(accumulate(map(len, rows)))
    tokens = ends[-1]
    if padding := -tokens % multiple:
        begins, rows, completions = [*begins, 0], [*rows, [0] * padding], [*completions, []]
        ends[-1] += padding  # the padding may read the last sequence, which is before it
    lengths = torch.tensor([len(row) for row in rows])
    sequence_L = torch.arange(len(rows)).repeat_interleave(lengths)
    position_L = torch.cat([torch.arange(len(row)) for row in rows])
    first_predicting_L = torch.tensor(
        [len(row) - len(c) for row, c in zip(rows, completions, strict=True)]
    ).repeat_interleave(lengths)
    mask_LL = torch.zeros((1, 1))
    if masked:
        readable_LL = (sequence_L[:, None] == sequence_L) & (position_L[:, None] >= position_L)
        mask_LL = torch.zeros(readable_LL.shape).masked_fill(~readable_LL, -torch.inf)
        mask_LL = torch.nn.functional.pad(mask_LL, (prefix, 0))
    return Batch(
        input_ids_BL=torch.tensor([[token for row in rows for token in row]]),
        attention_mask=mask_LL[None, None],
        position_ids_BL=(position_L + torch.tensor(begins).repeat_interleave(lengths))[None],
        predicts_BL=(position_L >= first_predicting_L)[None],
        completion_N=torch.tensor([token for completion in completions for token in completion]),
        tokens=tokens,
        bounds=None if masked else torch.tensor([lead, *ends]),
        apart=torch.tensor(led) if lead and led < len(prompts) else None,
    )
