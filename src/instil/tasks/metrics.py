"""Named rules for which answers are right."""

from __future__ import annotations

from collections.abc import Callable
from unicodedata import normalize

from instil.tasks.numbers import same_number

Metric = Callable[[str, str], bool]
"""A function of an answer and the gold answer: whether the answer is right."""

METRICS: dict[str, Metric] = {}
"""Name -> metric, for use in a recipe."""


def metric(name: str) -> Callable[[Metric], Metric]:
    """Registers a function as a metric with this name.

    ```python
    @instil.tasks.metric("same_first_word")
    def same_first_word(written: str, gold: str) -> bool:
        return written.split()[:1] == gold.split()[:1]
    ```

    Raises:
        ValueError: another metric already has this name.
    """

    def register(function: Metric) -> Metric:
        if METRICS.setdefault(name, function) is not function:
            raise ValueError(f"there is already a metric {name!r}; choose another name")
        return function

    return register


@metric("exact_match")
def exact_match(written: str, gold: str) -> bool:
    """Whether two texts are equal, without white space at their start and end.

    Forms of Unicode that are the same character, such as `é` in one piece or in two, are equal.
    """
    return normalize("NFC", written.strip()) == normalize("NFC", gold.strip())


@metric("number")
def number(written: str, gold: str) -> bool:
    """Whether both texts have the same final number; see `instil.tasks.numbers`."""
    return same_number(written, gold)
