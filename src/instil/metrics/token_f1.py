"""F1 of the words of two texts (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1)."""

from __future__ import annotations

from collections import Counter

from instil.metrics.normalised import normal
from instil.metrics.registry import metric


@metric("token_f1")
def token_f1(written: str, expected: str) -> float:
    """F1 of the words of two texts, without case and punctuation. Articles count, in any language."""
    one, two = Counter(normal(written).split()), Counter(normal(expected).split())
    both = sum((one & two).values())
    total = sum(one.values()) + sum(two.values())
    return 2 * both / total if total else 1.0
