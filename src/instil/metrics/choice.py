"""The same choice among several."""

from __future__ import annotations

import re

from instil.metrics.arguments import texts
from instil.metrics.normalised import normal
from instil.metrics.registry import metric

_IS = re.compile(r"(?i)\banswer(?:\s+is)?\s*:?\s*\(?([A-Z])\b\)?")
_MARKED = re.compile(r"(?:^|[\s(\[*])([A-Z])(?:[)\].:*]|$)", re.MULTILINE)


@metric("choice", reads=texts)
def choice(written: str, expected: str | list[str]) -> bool:
    """Whether an answer makes the same choice.

    A choice is a letter, as in `(B)`, `B.`, or `The answer is B`; or else the whole text without case
    and punctuation. In a rule, an answer must be one of the texts of the list.
    """
    if isinstance(expected, list):
        return normal(written) in {normal(one) for one in expected}
    return _chosen(written) == _chosen(expected)


def _chosen(text: str) -> str:
    for pattern in (_IS, _MARKED):
        if found := pattern.search(text.strip()):
            return found[1].upper()
    return normal(text)
