"""Finds texts that are copies, or nearly copies, of other ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    from datasketch import MinHashLSH

    known: dict[str, int] = {}
    near = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS)
    hashes: dict[int, Any] = {}
    for number, text in enumerate(map(plain, texts)):
        if text in known:
            yield known[text], True
            continue
        known[text], hashed = number, _hashed(text)
        alike = [] if hashed is None else sorted(near.query(hashed))
        first = next((n for n in alike if hashes[n].jaccard(hashed) >= NEAR), None)
        if first is not None:
            yield first, False
            continue
        if hashed is not None:
            hashes[number] = hashed
            near.insert(number, hashed)
        yield None


def _hashed(text: str) -> Any:
    """The MinHash of a text; None for a short one."""
    from datasketch import MinHash

    words = text.split()
    if len(words) < LEAST_WORDS:
        return None
    made = MinHash(num_perm=PERMUTATIONS)
    made.update_batch([piece.encode() for piece in _pieces(words)])
    return made


def _pieces(words: Sequence[str]) -> Iterator[str]:
    for start in range(len(words) - SHINGLE + 1):
        yield " ".join(words[start : start + SHINGLE])
