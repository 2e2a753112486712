"""chrF (Popović 2015), by the library `sacrebleu`."""

from __future__ import annotations

from functools import cache
from typing import Any

from instil.metrics.registry import metric, needs


@cache
def _scorer() -> Any:
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise needs("sacrebleu", "chrf") from error
    return CHRF()


@metric("chrf")
def chrf(written: str, expected: str) -> float:
    """The F-score of the characters that two texts share, in sequences of up to 6, from 0 to 1."""
    if written.strip() == expected.strip():
        return 1.0  # a text of one character has no longer sequences
    return min(1.0, float(_scorer().sentence_score(written, [expected]).score) / 100)
