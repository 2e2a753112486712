"""The length of an answer, in words and in sentences."""

from __future__ import annotations

import re

from instil.metrics.arguments import count
from instil.metrics.registry import metric

_SENTENCE = re.compile(r"[.!?…。！？]+(?=[\s\"'”’)]|$)|\n\s*\n")


@metric("max_words", compares=False, reads=count)
def max_words(written: str, expected: int) -> bool:
    """Whether an answer has at most this many words, which white space separates."""
    return len(written.split()) <= expected


@metric("min_words", compares=False, reads=count)
def min_words(written: str, expected: int) -> bool:
    """Whether an answer has at least this many words, which white space separates."""
    return len(written.split()) >= expected


@metric("max_sentences", compares=False, reads=count)
def max_sentences(written: str, expected: int) -> bool:
    """Whether an answer has at most this many sentences: texts that end in a mark, or in a gap."""
    return sum(bool(part.strip()) for part in _SENTENCE.split(written)) <= expected
