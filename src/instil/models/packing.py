"""Packing: whether a model can read several sequences in one row, and how many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from instil.models.attention import reads_bounds
from instil.models.batch import pack
from instil.models.forward import completion_logits

# Most tokens of a packed row: enough to keep the processor busy, and few enough that the
# activations of a layer stay small.
PACKED_TOKENS = 768
# Copying a shared prefix of this many tokens for every row costs more time than packing costs in
# attention.
LONG_PREFIX = 128
# Tokens per side used to test whether one packed sequence leaks into the next.
PROBED = 8


def packs(lengths: Sequence[int], *, most: int = PACKED_TOKENS) -> Iterator[list[int]]:
    """Cuts rows into groups, each for one packed row, and yields the rows' numbers.

    Args:
        lengths: Number of tokens that each row adds.
        most: Most tokens of a group; a longer row is a group of its own.
    """
    group: list[int] = []
    tokens = 0
    for number, length in enumerate(lengths):
        if group and tokens + length > most:
            yield group
            group, tokens = [], 0
        group.append(number)
        tokens += length
    if group:
        yield group


def even_packs(lengths: Sequence[int], *, most: int) -> list[list[int]]:
    """Cuts rows into few groups of similar size, longest rows first, and returns their numbers.

    Args:
        lengths: Number of tokens that each row adds.
        most: Most tokens of a group; if a single row has more, the length of the longest row.
    """
    most = max(most, *lengths)
    for count in range(math.ceil(sum(lengths) / most), len(lengths)):
        groups: list[list[int]] = [[] for _ in range(count)]
        tokens = [0] * count
        for number in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            least = tokens.index(min(tokens))
            groups[least].append(number)
            tokens[least] += lengths[number]
        if max(tokens) <= most:
            return groups
    return [[number] for number in range(len(lengths))]


@torch.inference_mode()
def keeps_apart(
    network: Any, first: tuple[list[int], list[int]], second: tuple[list[int], list[int]]
) -> bool:
    """Whether the model separates packed sequences.

    The first sequence must not change the predictions for the second. Some layers do not separate
    them: they carry a state along the row, or look back a fixed distance whatever the mask is.

    Args:
        network: In evaluation mode. In training mode the result is False.
        first: A prompt and its completion, in token ids. Only the end of the prompt and the start
            of the completion are used.
        second: Another prompt with its completion.
    """
    first, second = (
        (prompt[-PROBED:], completion[:PROBED]) for prompt, completion in (first, second)
    )
    if getattr(network.config.get_text_config(), "sliding_window", None) or network.training:
        return False
    changed = [token + 1 if token == 0 else token - 1 for token in first[0]]
    for masked in {True, not reads_bounds(network)}:
        before, after = (
            completion_logits(
                network, pack([prompt, second[0]], [first[1], second[1]], masked=masked)
            )[len(first[1]) :]
            for prompt in (first[0], changed)
        )
        if not torch.allclose(before, after, rtol=0, atol=1e-3 * float(before.abs().max())):
            return False
    return True
