"""The same text."""

from __future__ import annotations

from unicodedata import normalize

from instil.metrics.registry import metric


@metric("exact")
def exact(written: str, expected: str) -> bool:
    """Whether two texts are equal, without white space at their start and end.

    Forms of Unicode that are the same character, such as `é` in one piece or in two, are equal.
    """
    return normalize("NFC", written.strip()) == normalize("NFC", expected.strip())
