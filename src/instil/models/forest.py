"""Sequences of tokens, merged where they begin alike: each shared beginning is there once.

The turns of a conversation share its history: a later turn's prompt begins with an earlier turn's
prompt, and often with its answer. In a forest the history is there once. Answers that differ from
it branch off. What may be shared is found by token ids, so no knowledge of templates is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from instil.system.sequences import common

# Fewest tokens that are shared where two sequences part. A shorter piece costs more to attend to
# by itself than to read again.
LEAST_SHARED = 16


@dataclass(eq=False)
class Segment:
    """Tokens that the same sequences go through.

    Attributes:
        ids: Token ids.
        start: Number of tokens before them in each sequence.
        taken: Where the next token of one of the sequences is predicted. No other one may predict
            there.
        parent: The segment before it.
        children: The segments after it.
        offset: Number of its first token when all segments stand one after another.
    """

    ids: NDArray[np.int32]
    start: int
    taken: NDArray[np.bool_]
    parent: Segment | None = None
    children: list[Segment] = field(default_factory=list)
    offset: int = 0

    @property
    def end(self) -> int:
        """Number of tokens up to its last one, in each sequence."""
        return self.start + len(self.ids)

    def path(self) -> list[Segment]:
        """The segments from the first one to this one."""
        return [*(self.parent.path() if self.parent else []), self]


class Forest:
    """Sequences, merged where they begin alike.

    Args:
        sequences: For each sequence its token ids, and the index of the first token that predicts
            a token of its completion. All tokens after that one predict, too.
    """

    def __init__(self, sequences: Sequence[tuple[Sequence[int], int]]) -> None:
        self.roots: list[Segment] = []
        self._ends = [
            self._added(np.array(ids, np.int32), predicting) for ids, predicting in sequences
        ]
        self._predicting = [(first, len(ids)) for ids, first in sequences]
        self.segments = list(self._ordered(self.roots))
        self.tokens = 0
        for segment in self.segments:
            segment.offset = self.tokens
            self.tokens += len(segment.ids)

    @property
    def ids(self) -> NDArray[np.int32]:
        """All token ids, segment by segment; a segment comes after its parent."""
        return np.concatenate([segment.ids for segment in self.segments])

    @property
    def depths(self) -> NDArray[np.int64]:
        """Number of tokens before each token in its sequence."""
        return np.concatenate([np.arange(one.start, one.end) for one in self.segments])

    @property
    def parents(self) -> list[int]:
        """Number of each segment's parent; -1 for a segment without one."""
        numbers = {id(segment): number for number, segment in enumerate(self.segments)}
        return [-1 if one.parent is None else numbers[id(one.parent)] for one in self.segments]

    def predicting(self) -> NDArray[np.int64]:
        """Where the completions' tokens are predicted, one sequence after another."""
        places: list[NDArray[np.int64]] = []
        for end, (first, length) in zip(self._ends, self._predicting, strict=True):
            for segment in end.path():
                depths = np.arange(max(first, segment.start), min(length, segment.end))
                places.append(depths - segment.start + segment.offset)
        return np.concatenate(places)

    def _added(self, ids: NDArray[np.int32], predicting: int) -> Segment:
        """Adds a sequence; returns the segment in which it ends."""
        above: Segment | None = None
        depth = 0
        while depth < len(ids):
            siblings = above.children if above else self.roots
            below, shared = _most_shared(siblings, ids, depth, predicting)
            if below is None:
                break
            if shared < len(below.ids):
                below = self._split(below, shared)
            below.taken[max(0, predicting - depth) : shared] = True
            above, depth = below, depth + shared
        if above is None or depth < len(ids):
            taken = np.arange(depth, len(ids)) >= predicting
            if above is not None and not above.children:  # nothing parts here
                above.ids = np.concatenate([above.ids, ids[depth:]])
                above.taken = np.concatenate([above.taken, taken])
            else:
                below = Segment(ids[depth:], depth, taken, above)
                (above.children if above else self.roots).append(below)
                above = below
        return above

    def _split(self, segment: Segment, at: int) -> Segment:
        """Cuts a segment in two; returns the first part. The second one stays the same object."""
        first = Segment(
            segment.ids[:at], segment.start, segment.taken[:at], segment.parent, [segment]
        )
        siblings = segment.parent.children if segment.parent else self.roots
        siblings[siblings.index(segment)] = first
        segment.ids, segment.taken = segment.ids[at:], segment.taken[at:]
        segment.start, segment.parent = first.end, first
        return first

    def _ordered(self, segments: Sequence[Segment]) -> Iterator[Segment]:
        waiting = [*reversed(segments)]
        while waiting:
            segment = waiting.pop()
            yield segment
            waiting += reversed(segment.children)


def _most_shared(
    segments: Sequence[Segment], ids: NDArray[np.int32], depth: int, predicting: int
) -> tuple[Segment | None, int]:
    """The segment with which a sequence shares the most tokens from a depth on, and their number.

    None is returned if that is too few.
    """
    best, most = None, 0
    for segment in segments:
        if segment.ids[0] != ids[depth]:
            continue
        shared = common(segment.ids, ids[depth:])
        first = max(0, predicting - depth)
        taken = np.flatnonzero(segment.taken[first:shared])
        shared = first + int(taken[0]) if len(taken) else shared
        whole = shared == len(segment.ids) and not segment.children
        if shared > most and (shared >= LEAST_SHARED or whole):
            best, most = segment, shared
    return best, most


def merged(sequences: Sequence[tuple[list[int], list[int]]], prefix: int = 0) -> Forest:
    """Prompts with their completions as a forest.

    No scored token comes after the last completion token, so that token is left out.

    Args:
        sequences: Prompts with their completions, in token ids.
        prefix: Number of leading tokens of each prompt that are left out.
    """
    return Forest(
        [
            ([*prompt[prefix:], *completion[:-1]], len(prompt) - prefix - 1)
            for prompt, completion in sequences
        ]
    )
