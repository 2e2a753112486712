"""Finds texts that are copies, or nearly copies, of other ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Any

from instil.tasks.rows import plain

SHINGLE = 5
"""Words of a piece by which texts are compared."""
NEAR = 0.9
"""Share of pieces that two texts have in common, from which they are near-copies."""
LEAST_WORDS = 50
"""Texts with fewer words have no near-copies: one word changes too large a part of them."""
PERMUTATIONS = 64


def copies(texts: Iterable[str]) -> Iterator[tuple[int, bool] | None]:
    """For each text, the number of the first one of which it is a copy, and whether it is exact.

    Near-copies are found by MinHash (Broder 1997) with the library datasketch. Of two texts of a
    hundred words, one word may differ.

    Yields:
        None for a text that is new.
    """
    # Imported here because it takes a second, and most rows are no logs.
    from datasketch import MinHash, MinHashLSH

    known: dict[bytes, int] = {}
    near = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS)
    empty = MinHash(num_perm=PERMUTATIONS)  # its copies share the permutations
    hashes: dict[int, Any] = {}
    for number, text in enumerate(map(plain, texts)):
        exact = blake2b(text.encode()).digest()
        if exact in known:
            yield known[exact], True
            continue
        known[exact] = number
        words = text.split()
        if len(words) < LEAST_WORDS:  # too short for near-copies
            yield None
            continue
        hashed = empty.copy()
        hashed.update_batch(_pieces(words))
        alike = sorted(near.query(hashed))
        first = next((n for n in alike if hashes[n].jaccard(hashed) >= NEAR), None)
        if first is not None:
            yield first, False
            continue
        hashes[number] = hashed
        near.insert(number, hashed)
        yield None


def _pieces(words: Sequence[str]) -> list[bytes]:
    text = " ".join(words).encode()
    ends = [*accumulate((len(word.encode()) + 1 for word in words), initial=0)]
    pairs = zip(ends, ends[SHINGLE:], strict=False)
    return [text[start : end - 1] for start, end in pairs]
