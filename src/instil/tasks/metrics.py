"""Whether an answer is right."""

from __future__ import annotations


def exact_match(output: str, expected: str) -> bool:
    """Whether two texts are equal, outer white space aside."""
    return output.strip() == expected.strip()
