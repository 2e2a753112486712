"""The same final number."""

from __future__ import annotations

from instil.metrics.numbers import same_number
from instil.metrics.registry import metric


@metric("number")
def number(written: str, expected: str) -> bool:
    """Whether both texts have the same final number; see `instil.metrics.numbers`."""
    return same_number(written, str(expected))
