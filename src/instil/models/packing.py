"""Packing: how many sequences go into one row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

# Most tokens of a packed row: enough to keep the processor busy, and few enough that the
# activations of a layer stay small.
PACKED_TOKENS = 768
# Copying a shared prefix of this many tokens for every row costs more time than packing costs in
# attention.
LONG_PREFIX = 128


# How much longer a packed row may be, so that rows that begin alike stay together.
STRETCH = 4


def packs(
    lengths: Sequence[int], shared: Sequence[int] | None = None, *, most: int = PACKED_TOKENS
) -> Iterator[list[int]]:
    """Cuts rows into groups, each for one packed row, and yields the rows' numbers.

    Args:
        lengths: Number of tokens of each row.
        shared: Number of leading tokens that each row shares with the row before it.
        most: Most tokens of a group; a longer row is a group of its own. A group may be longer if
            its rows begin alike.
    """
    group: list[int] = []
    tokens = 0
    for number, length in enumerate(lengths):
        alike = shared[number] if shared and group else 0
        if group and tokens + length - alike > most * (STRETCH if alike else 1):
            yield group
            group, tokens, alike = [], 0, 0
        group.append(number)
        tokens += length - alike
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
