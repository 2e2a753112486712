"""Scores as pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from instil.results import Proportion


def exact_match(output: str, expected: str) -> bool:
    """Whether two texts are equal, outer white space aside."""
    return output.strip() == expected.strip()


def proportion(outcomes: Sequence[bool]) -> Proportion:
    """The share of true outcomes with its 95 % interval (Wilson 1927), which holds near 0 and 1 too."""
    from statsmodels.stats.proportion import proportion_confint

    n, hits = len(outcomes), sum(outcomes)
    low, high = proportion_confint(hits, n, alpha=0.05, method="wilson")
    value = hits / n
    # At 0 and n hits a bound equals the value, but for rounding.
    return Proportion(
        value=value,
        low=max(0.0, min(value, float(low))),
        high=min(1.0, max(value, float(high))),
        n=n,
    )


def recovery(*, zero_shot: float, in_context: float, distilled: float) -> float | None:
    """How much of what the context gains the student keeps; None where the context gains nothing."""
    gain = in_context - zero_shot
    return (distilled - zero_shot) / gain if gain > 0 else None
