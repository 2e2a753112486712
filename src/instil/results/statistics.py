"""Scores, intervals and tests as pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from instil.results.scores import Proportion

DRAWS = 2_000
"""Samples of a bootstrap."""


def wilson(share: float, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share of `n` rows (Wilson 1927). Also valid near 0 and 1."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(share * n, n, alpha=0.05, method="wilson")
    # At 0 and 1 a bound equals the share, except for rounding errors.
    return max(0.0, min(share, float(low))), min(1.0, max(share, float(high)))


def proportion(outcomes: Sequence[bool]) -> Proportion:
    """Returns the share of true outcomes, with its 95 % Wilson interval."""
    share = sum(outcomes) / len(outcomes)
    low, high = wilson(share, len(outcomes))
    return Proportion(value=share, low=low, high=high, n=len(outcomes))


def mean_value(values: Sequence[float]) -> Proportion:
    """Returns the mean of values from 0 to 1, with its 95 % interval.

    For booleans it is `proportion`. Else it is a percentile bootstrap over rows (Efron 1979), which
    always gives the same interval for the same values.
    """
    if all(isinstance(value, bool) for value in values):
        return proportion([bool(value) for value in values])
    import numpy as np

    known = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0)
    means = [drawn.choice(known, len(known)).mean() for _ in range(DRAWS)]
    low, high = np.quantile(means, [0.025, 0.975])
    mean = float(known.mean())
    return Proportion(
        value=mean, low=min(mean, float(low)), high=max(mean, float(high)), n=len(known)
    )


def calibration_error(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """Returns the expected calibration error (Naeini et al. 2015) over the bins of `reliability`.

    Args:
        confidences: Probability of each predicted label.
        right: Whether each predicted label is right.
    """
    bins = reliability(zip(confidences, right, strict=True))
    return sum(rows * abs(confidence - share) for confidence, share, rows in bins) / len(right)


def reliability(
    answers: Iterable[tuple[float, bool]], bins: int = 10
) -> list[tuple[float, float, int]]:
    """Returns mean confidence, share of right answers and number of rows for each bin.

    The bins of confidence have equal width. Empty bins are left out.

    Args:
        answers: Confidence of each answer, and whether it is right.
        bins: Number of bins.
    """
    filled: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in answers:
        # 1.0 belongs to the last bin.
        filled.setdefault(min(int(confidence * bins), bins - 1), []).append((confidence, right))
    return [
        (
            statistics.fmean(confidence for confidence, _ in rows),
            statistics.fmean(right for _, right in rows),
            len(rows),
        )
        for _, rows in sorted(filled.items())
    ]


def confusion(
    labels: Sequence[str], gold: Sequence[str], predicted: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Returns the confusion matrix: gold label -> predicted label -> number of rows.

    Every label occurs in both places.
    """
    pairs = list(zip(gold, predicted, strict=True))
    return {a: {b: pairs.count((a, b)) for b in labels} for a in labels}


def pooled(tables: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Returns the sum of confusion matrices: gold label -> predicted label -> number of rows."""
    total: dict[str, dict[str, int]] = {}
    for table in tables:
        for gold, row in table.items():
            line = total.setdefault(gold, {})
            for predicted, rows in row.items():
                line[predicted] = line.get(predicted, 0) + rows
    return total


def predicted_shares(confusion: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Returns the share of rows for which each label is predicted."""
    counts: dict[str, int] = {}
    for row in confusion.values():
        for label, rows in row.items():
            counts[label] = counts.get(label, 0) + rows
    all_rows = sum(counts.values()) or 1
    return {label: rows / all_rows for label, rows in counts.items()}


def deviation(values: Sequence[float]) -> float | None:
    """Returns the sample standard deviation (denominator n - 1); None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Returns the 95 % t interval of the mean; None if all values are equal."""
    if len(set(values)) < 2:
        return None
    from statsmodels.stats.weightstats import DescrStatsW

    low, high = DescrStatsW(list(values)).tconfint_mean(alpha=0.05)
    return float(low), float(high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Returns the two-sided exact p value of McNemar's test (1947).

    Args:
        only_a: Number of rows that only method A gets right.
        only_b: Number of rows that only method B gets right.
    """
    if only_a + only_b == 0:
        return 1.0
    from statsmodels.stats.contingency_tables import mcnemar as test

    return min(1.0, float(test([[0, only_a], [only_b, 0]], exact=True).pvalue))


def holm(p: Sequence[float]) -> list[float]:
    """Returns p values corrected for multiple tests (Holm 1979), in the given order."""
    if not p:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(list(p), method="holm")[1]]
