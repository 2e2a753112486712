"""Sequences that take little memory: their items are made when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Computed(Sequence[T]):
    """A sequence whose items are computed when they are asked for, each time anew.

    Args:
        length: Number of items.
        item: Makes the item at an index from 0 to `length` - 1.
    """

    def __init__(self, length: int, item: Callable[[int], T]) -> None:
        self._numbers, self._item = range(length), item

    @staticmethod
    def picked(items: Sequence[T], numbers: Sequence[int]) -> Computed[T]:
        """The items at some indices, in their order."""
        return Computed(len(numbers), lambda index: items[numbers[index]])

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return self.picked(self, self._numbers[index])
        return self._item(self._numbers[index])


class Kept:
    """Token ids in one piece of memory, 4 bytes each. What a place repeats is kept once.

    An answer begins what the next turn of its conversation adds, and teacher and student read the
    same turns, so that all lists of a row or of a conversation may share a place.
    """

    def __init__(self) -> None:
        self._ids = array("i")
        self._last: tuple[int, NDArray[np.int32]] = (0, np.array([], np.int32))

    def __getitem__(self, place: slice) -> list[int]:
        return self._ids[place].tolist()

    def place(self, ids: NDArray[np.int32]) -> int:
        """Where token ids begin. They are added if they are not there already."""
        start, last = self._last
        over = len(last) - len(ids)
        if over >= 0 and np.array_equal(last[over:], ids):
            return start + over
        known = 0
        if over < 0 and start + len(last) == len(self._ids) and np.array_equal(last, ids[:over]):
            known = len(last)
        self._ids.frombytes(np.ascontiguousarray(ids[known:]).tobytes())
        self._last = len(self._ids) - len(ids), ids
        return self._last[0]

    def extend(self, other: Kept) -> int:
        """Adds all ids of another memory, and returns where they begin."""
        start = len(self._ids)
        self._ids.extend(other._ids)
        return start


class Lists(Computed[list[int] | None]):
    """Lists of token ids in one piece of memory, or None in place of a list.

    Args:
        kept: Where the ids are kept; None for a place of their own.
    """

    def __init__(self, kept: Kept | None = None) -> None:
        self._kept = Kept() if kept is None else kept
        self._starts, self._counts = array("q"), array("i")
        super().__init__(0, self._at)

    def add(self, ids: Sequence[int] | None) -> None:
        """Adds a list."""
        self._starts.append(0 if ids is None else self._kept.place(np.array(ids, np.int32)))
        self._counts.append(-1 if ids is None else len(ids))
        self._numbers = range(len(self._counts))

    def extend(self, other: Lists, start: int) -> None:
        """Adds the lists of other ones, whose ids were added to the memory at a place."""
        self._starts.extend(start + one for one in other._starts)
        self._counts.extend(other._counts)
        self._numbers = range(len(self._counts))

    def _at(self, index: int) -> list[int] | None:
        start, count = self._starts[index], self._counts[index]
        return None if count < 0 else self._kept[start : start + count]


class TokenLists(Computed[list[int]]):
    """Lists of token ids, of which many begin alike. A common beginning is stored once.

    A prompt of 1,650 tokens takes 45 KiB as a list of numbers. Behind a shared context only the
    tokens of its own query are stored, with 4 bytes each.

    Args:
        kept: Where the ids are kept; None for a place of their own.
    """

    def __init__(self, kept: Kept | None = None) -> None:
        self._kept = Kept() if kept is None else kept
        self._heads: dict[Hashable, tuple[int, NDArray[np.int32]]] = {}
        self._last: tuple[Hashable, int, NDArray[np.int32]] | None = None
        self._before, self._shared = array("i"), array("i")
        self._starts, self._counts = array("q"), array("i")
        super().__init__(0, self._list)

    def add(self, ids: Sequence[int], *, key: Hashable, follows: Hashable | None = None) -> None:
        """Adds a list.

        Args:
            ids: Token ids.
            key: The lists of a key are expected to begin alike.
            follows: What the list continues, such as a conversation, whose lists are added one
                after another; None for nothing.
        """
        number, made = len(self._counts), np.array(ids, np.int32)
        head, known = self._heads.setdefault(key, (number, made))
        whole = None if follows is None else (key, follows)
        if self._last is not None and whole == self._last[0]:
            _, head, known = self._last
        shared = 0 if head == number else common(known, made)
        self._before.append(head)
        self._shared.append(shared)
        self._starts.append(self._kept.place(made[shared:]))
        self._counts.append(len(made) - shared)
        self._numbers = range(number + 1)
        self._last = None if whole is None else (whole, number, made)

    def extend(self, other: TokenLists, start: int) -> None:
        """Adds the lists of other ones, whose ids were added to the memory at a place."""
        number = len(self._counts)
        self._before.extend(number + one for one in other._before)
        self._shared.extend(other._shared)
        self._starts.extend(start + one for one in other._starts)
        self._counts.extend(other._counts)
        self._numbers = range(len(self._counts))

    def _list(self, index: int) -> list[int]:
        rests: list[list[int]] = []
        needed: int | None = None
        while True:
            shared, start, count = self._shared[index], self._starts[index], self._counts[index]
            used = count if needed is None else max(0, needed - shared)
            rests.append(self._kept[start : start + used])
            needed = shared if needed is None else min(needed, shared)
            if not needed:
                return [token for one in reversed(rests) for token in one]
            index = self._before[index]


def common(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """How many leading items of two lists are the same."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter


def lengths(lists: Sequence[Sequence[int] | None]) -> list[int]:
    """The length of each list, 0 for none. Lists that are stored are not made for it."""
    if isinstance(lists, TokenLists):
        return [sum(pair) for pair in zip(lists._shared, lists._counts, strict=True)]
    if isinstance(lists, Lists):
        return [max(0, count) for count in lists._counts]
    return [len(one or ()) for one in lists]
