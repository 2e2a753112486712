"""Packing: when a model may read several sequences in one row, and how many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from instil.models.attention import reads_bounds
from instil.models.batch import pack
from instil.models.forward import completion_logits

# Tokens of one packed row: enough to keep the processor busy, few enough for what a layer makes of them to be small.
PACKED_TOKENS = 768
# A shared prefix of this many tokens costs more to copy for every row than packing costs in attention.
LONG_PREFIX = 128
# Tokens of a prompt, and of its completion, that tell whether a model lets them change what stands right behind them.
PROBED = 8


def packs(lengths: Sequence[int], *, most: int = PACKED_TOKENS) -> Iterator[list[int]]:
    """Cuts rows into groups for one packed row each, and yields their numbers.

    Args:
        lengths: Tokens that each row adds.
        most: Tokens of one group, if no row alone has more.
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
    """Cuts rows into few groups of like size, longest rows first, and gives their numbers.

    Args:
        lengths: Tokens that each row adds.
        most: Tokens of one group, if no row alone has more.
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
    network: Any, one: tuple[list[int], list[int]], other: tuple[list[int], list[int]]
) -> bool:
    """Whether the model keeps packed sequences apart: the first one must not change what the second one predicts.

    Not so where layers carry a state along or look back a fixed distance whatever the mask says.

    Args:
        network: In evaluation mode; a model in training mode is said not to.
        one: A prompt and its completion, in token ids; their ends that meet are enough.
        other: Another one.
    """
    one, other = ((prompt[-PROBED:], completion[:PROBED]) for prompt, completion in (one, other))
    if getattr(network.config.get_text_config(), "sliding_window", None) or network.training:
        return False
    changed = [token + 1 if token == 0 else token - 1 for token in one[0]]
    for masked in {True, not reads_bounds(network)}:
        before, after = (
            completion_logits(network, pack([prompt, other[0]], [one[1], other[1]], masked=masked))[
                len(one[1]) :
            ]
            for prompt in (one[0], changed)
        )
        if not torch.allclose(before, after, rtol=0, atol=1e-3 * float(before.abs().max())):
            return False
    return True
