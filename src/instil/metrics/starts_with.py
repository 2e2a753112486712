"""How an answer begins and ends."""

from __future__ import annotations

from instil.metrics.arguments import text
from instil.metrics.registry import metric


@metric("starts_with", reads=text)
def starts_with(written: str, expected: str) -> bool:
    """Whether an answer begins with a text. White space before both does not count."""
    return written.lstrip().startswith(expected.lstrip())


@metric("ends_with", reads=text)
def ends_with(written: str, expected: str) -> bool:
    """Whether an answer ends with a text. White space after both does not count."""
    return written.rstrip().endswith(expected.rstrip())
