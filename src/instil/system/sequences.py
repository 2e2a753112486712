"""Sequences that take little memory: their items are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import repeat
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


class TokenLists(Computed[list[int]]):
    """Lists of token ids, of which many begin alike. A common beginning is stored once.

    A prompt of 1,650 tokens takes 45 KiB as a list of numbers. Behind a shared context only the
    tokens of its own query are stored, with 4 bytes each.

    Args:
        lists: Lists of token ids, each with a key. The lists of a key are expected to begin alike.
        follows: For each list what it goes on with, such as a conversation; None for nothing. It
            is expected to begin as the list before it of the same conversation does.
    """

    def __init__(
        self,
        lists: Iterable[tuple[Hashable, list[int]]],
        follows: Iterable[Hashable | None] = repeat(None),
    ) -> None:
        heads: dict[Hashable, int] = {}
        lasts: dict[Hashable, tuple[int, NDArray[np.int32]]] = {}
        firsts: dict[Hashable, NDArray[np.int32]] = {}
        self._parts: list[tuple[int, int, NDArray[np.int32]]] = []
        for number, ((key, ids), whole) in enumerate(zip(lists, follows, strict=False)):
            array = np.array(ids, np.int32)
            if whole is not None and (key, whole) in lasts:
                head, known = lasts[key, whole]
            else:
                head, known = heads.setdefault(key, number), firsts.setdefault(key, array)
            shared = 0 if head == number else common(known, array)
            self._parts.append((head, shared, array[shared:].copy()))
            if whole is not None:
                lasts = {(key, whole): (number, array)}  # a conversation's lists come together
        super().__init__(len(self._parts), self._list)

    def _list(self, index: int) -> list[int]:
        rests: list[NDArray[np.int32]] = []
        needed = None
        while True:
            head, shared, rest = self._parts[index]
            rests.append(rest if needed is None else rest[: max(0, needed - shared)])
            needed = shared if needed is None else min(needed, shared)
            if not needed:
                return [token for one in reversed(rests) for token in one.tolist()]
            index = head


def common(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """How many leading items of two lists are the same."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter
