"""Texts that an answer holds."""

from __future__ import annotations

from unicodedata import normalize

from instil.metrics.arguments import texts
from instil.metrics.registry import metric


def _plain(text: str) -> str:
    return normalize("NFC", text).casefold()


@metric("contains", reads=texts)
def contains(written: str, expected: str | list[str]) -> bool:
    """Whether an answer holds a text, or all texts of a list. Case does not matter."""
    wanted = [expected] if isinstance(expected, str) else expected
    return all(_plain(text).strip() in _plain(written) for text in wanted)


@metric("contains_none", compares=False, reads=texts)
def contains_none(written: str, expected: str | list[str]) -> bool:
    """Whether an answer holds none of these texts. Case does not matter."""
    unwanted = [expected] if isinstance(expected, str) else expected
    return not any(_plain(text).strip() in _plain(written) for text in unwanted)
