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


class Seen:
    """Texts that were seen.

    Near-copies are found by MinHash (Broder 1997) with the library datasketch. Of texts with equal
    words in a hundred, one word may differ.
    """

    def __init__(self) -> None:
        # Imported here because it takes a second, and most rows are no logs.
        from datasketch import MinHashLSH

        self._exact: dict[str, int] = {}
        self._near = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS)
        self._hashes: dict[int, Any] = {}

    def find(self, text: str) -> tuple[int, bool] | None:
        """The number of a text of which this is a copy, and whether it is an exact one; or None."""
        text = plain(text)
        if text in self._exact:
            return self._exact[text], True
        hashed = _hashed(text)
        if hashed is not None:
            for number in sorted(self._near.query(hashed)):
                if self._hashes[number].jaccard(hashed) >= NEAR:
                    return number, False
        return None

    def add(self, number: int, text: str) -> None:
        """Adds a text under a number."""
        text = plain(text)
        self._exact.setdefault(text, number)
        hashed = _hashed(text)
        if hashed is not None:
            self._hashes[number] = hashed
            self._near.insert(number, hashed)


def copies(texts: Iterable[str]) -> Iterator[tuple[int, bool] | None]:
    """For each text, the number of the first one of which it is a copy, and whether it is exact.

    Yields:
        None for a text that is new.
    """
    seen = Seen()
    for number, text in enumerate(texts):
        found = seen.find(text)
        if found is None:
            seen.add(number, text)
        yield found


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
