"""ROUGE-L (Lin 2004), by the library `rouge-score`."""

from __future__ import annotations

from functools import cache
from typing import Any

from instil.metrics.registry import metric, needs


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise needs("rouge-score", "rouge_l") from error
    return RougeScorer(["rougeL"], tokenizer=_Words())


class _Words:
    """Splits a text into words. The library's own way knows only Latin letters without marks."""

    def tokenize(self, text: str) -> list[str]:
        from instil.metrics.normalised import normal

        return normal(text).split()


@metric("rouge_l")
def rouge_l(written: str, expected: str) -> float:
    """F1 of the longest common subsequence of words, without case and punctuation."""
    if not _Words().tokenize(expected):
        return float(not _Words().tokenize(written))
    return float(_scorer().score(expected, written)["rougeL"].fmeasure)
