"""Scoring labels: the logits that decide them, for many prompts, what the prompts share read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from instil.models.attention import reads_bounds
from instil.models.batch import collate, pack
from instil.models.cache import SharedPrefix, alike
from instil.models.forward import completion_logits
from instil.models.load import LanguageModel
from instil.models.packing import LONG_PREFIX, keeps_apart, packs
from instil.system import processes
from instil.system.progress import Advance

T = TypeVar("T")
# Tokens of one packed row. Few of them need logits, so more go together than where a completion is scored.
PACKED_TOKENS = 1280


@torch.inference_mode()
def logits(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    *,
    batch_size: int,
    advance: Advance,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yields batches of rows in any order: their numbers, and the logits (rows x P, V) that decide their labels.

    Args:
        model: A language model, or one with a classification head.
        prompts: Whole prompts in token ids, checked; what those of one context share at their start is read once.
        completions: Put after each prompt, as `LabelTokens.completions`.
        batch_size: Most rows in a forward pass.
        advance: Told of progress.
    """
    longest = max(map(len, completions))
    for group in alike(prompts):
        of_group = [prompts[number] for number in group]
        prefix = SharedPrefix(model.network, of_group)
        advance(0, prefix.length)
        ends = (of_group[0], list(completions[0])), (of_group[-1], list(completions[-1]))
        long = prefix.can_lend and prefix.length >= LONG_PREFIX
        packed = long and keeps_apart(model.network, *ends)
        own = [(len(prompt) - prefix.length + longest) * len(completions) for prompt in of_group]
        if packed:
            batches = packs(own, most=PACKED_TOKENS)
        else:
            lengths = [prefix.length + n for n in own]
            scored = [sum(map(len, completions))] * len(of_group)
            batches = prefix.batches(lengths, batch_size=batch_size, scored=scored)
        for places in batches:
            texts = [of_group[i] for i in places for _ in completions]
            asked = [list(completion) for _ in places for completion in completions]
            if packed:
                masked = not reads_bounds(model.network)
                batch = pack(texts, asked, prefix=prefix.length, masked=masked)
                with prefix.lent() as cache:
                    logits_NV = completion_logits(model.network, batch, cache=cache)
            else:
                batch = collate(texts, asked, pad_id=model.pad_id, prefix=prefix.length)
                cache = prefix.cache(len(texts))
                logits_NV = completion_logits(model.network, batch, cache=cache)
            yield [group[place] for place in places], logits_NV
            advance(len(places), batch.tokens)


def scored(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    *,
    batch_size: int,
    advance: Advance,
    make: Callable[[Tensor], T],
) -> list[tuple[list[int], T]]:
    """What is made of the logits that decide labels, batch by batch; each process of a launch reads its share of the prompts.

    Args:
        model: As for `logits`.
        prompts: All of them.
        completions: As for `logits`.
        batch_size: The same.
        advance: Told of this process's progress.
        make: Makes of a batch's logits (rows x P, V) what is kept of them, in processor memory.

    Returns:
        Of all batches, in any order, the numbers of their rows and what was made.
    """
    mine = processes.share(len(prompts))
    batches = logits(
        model,
        [prompts[number] for number in mine],
        completions,
        batch_size=batch_size,
        advance=advance,
    )
    with torch.inference_mode():
        made = [([mine[number] for number in numbers], make(each)) for numbers, each in batches]
    return [batch for share in processes.gather(made) for batch in share]


def in_order(batches: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Puts what was computed in batches, one line a row, back into the rows' order."""
    places = torch.tensor([number for numbers, _ in batches for number in numbers])
    return torch.cat([values for _, values in batches])[places.argsort()]
