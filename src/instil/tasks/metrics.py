"""Rules that tell a right answer from a wrong one, by name."""

from __future__ import annotations

from collections.abc import Callable

from instil.tasks.numbers import same_number

Metric = Callable[[str, str], bool]
"""Called with what was written and with the gold answer, it says whether the former is right."""

METRICS: dict[str, Metric] = {}
"""The metrics that a recipe may name."""


def metric(name: str) -> Callable[[Metric], Metric]:
    """Registers a function as the metric of a name.

    ```python
    @instil.tasks.metric("same_first_word")
    def same_first_word(written: str, gold: str) -> bool:
        return written.split()[:1] == gold.split()[:1]
    ```

    Raises:
        ValueError: another metric has this name.
    """

    def register(function: Metric) -> Metric:
        if METRICS.setdefault(name, function) is not function:
            raise ValueError(f"there is a metric {name!r} already; choose another name")
        return function

    return register


@metric("exact_match")
def exact_match(written: str, gold: str) -> bool:
    """Whether two texts are equal, outer white space aside."""
    return written.strip() == gold.strip()


@metric("number")
def number(written: str, gold: str) -> bool:
    """Whether both texts end in the same number; see `instil.tasks.numbers`."""
    return same_number(written, gold)
