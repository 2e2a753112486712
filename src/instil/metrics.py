"""Scores as pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from instil.results import Proportion

CALIBRATION_BINS = 10


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


def calibration_error(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error (Naeini et al. 2015): confidence against accuracy in 10 equally wide bins.

    Args:
        confidences: Probability of each predicted label.
        right: Whether it was right.
    """
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, correct in zip(confidences, right, strict=True):
        bins.setdefault(min(int(confidence * CALIBRATION_BINS), CALIBRATION_BINS - 1), []).append(
            (confidence, correct)
        )
    gaps = (abs(sum(c for c, _ in kept) - sum(ok for _, ok in kept)) for kept in bins.values())
    return sum(gaps) / len(right)


def confusion(
    labels: Sequence[str], gold: Sequence[str], predicted: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Gold label -> predicted label -> rows; every label occurs in both places."""
    pairs = list(zip(gold, predicted, strict=True))
    return {one: {other: pairs.count((one, other)) for other in labels} for one in labels}
