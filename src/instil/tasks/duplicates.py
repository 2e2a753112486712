"""Finds texts that are copies, or nearly copies, of other ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate, chain
from typing import Any, TypeVar

from instil.system import forks
from instil.tasks.rows import plain

T = TypeVar("T")

SHINGLE = 5
"""Words of a piece by which texts are compared."""
NEAR = 0.9
"""Share of pieces that two texts have in common, from which they are near-copies."""
LEAST_WORDS = 50
"""Texts with fewer words have no near-copies: one word changes too large a part of them."""
PERMUTATIONS = 64


def copies(items: Sequence[T], text: Callable[[T], str]) -> Iterator[tuple[int, bool] | None]:
    """For each item, the number of the first one of which it is a copy, and whether it is exact.

    Near-copies are found by MinHash (Broder 1997) with the library datasketch. Of two texts of a
    hundred words, one word may differ.

    Args:
        items: The items.
        text: The text of an item.

    Yields:
        None for an item that is new.
    """
    # Imported here because it takes a second, and most rows are no logs.
    from datasketch import MinHash, MinHashLSH

    empty = MinHash(num_perm=PERMUTATIONS)  # its copies share the permutations
    near = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS)

    def prints(numbers: range) -> list[tuple[bytes, Any]]:
        return [_print(plain(text(items[number])), empty) for number in numbers]

    known: dict[bytes, int] = {}
    hashes: dict[int, Any] = {}
    for number, (exact, values) in enumerate(chain.from_iterable(forks.shares(prints, len(items)))):
        if exact in known:
            yield known[exact], True
            continue
        known[exact] = number
        if values is None:
            yield None
            continue
        hashed = empty.copy()
        hashed.hashvalues = values
        alike = sorted(near.query(hashed))
        first = next((n for n in alike if hashes[n].jaccard(hashed) >= NEAR), None)
        if first is not None:
            yield first, False
            continue
        hashes[number] = hashed
        near.insert(number, hashed)
        yield None


def _print(text: str, empty: Any) -> tuple[bytes, Any]:
    """What equal texts have in common, and what texts that are alike nearly have in common.

    The latter is None for a short text, which has no near-copies.
    """
    exact, words = blake2b(text.encode(), digest_size=16).digest(), text.split()
    if len(words) < LEAST_WORDS:
        return exact, None
    made = empty.copy()
    made.update_batch(_pieces(words))
    return exact, made.hashvalues


def _pieces(words: Sequence[str]) -> list[bytes]:
    text = " ".join(words).encode()
    ends = [*accumulate((len(word.encode()) + 1 for word in words), initial=0)]
    pairs = zip(ends, ends[SHINGLE:], strict=False)
    return [text[start : end - 1] for start, end in pairs]
