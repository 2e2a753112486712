"""Intervals and tests that need more than one score; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float | None:
    """The sample's standard deviation (n - 1 in the denominator); None below two values."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return float((sum((v - middle) ** 2 for v in values) / (len(values) - 1)) ** 0.5)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The mean's 95 % interval by Student's t; None where the values do not vary."""
    if len(set(values)) < 2:
        return None
    from statsmodels.stats.weightstats import DescrStatsW

    low, high = DescrStatsW(list(values)).tconfint_mean(alpha=0.05)
    return float(low), float(high)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `n` rows (Wilson 1927)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(share * n, n, alpha=0.05, method="wilson")
    # At 0 and 1 a bound equals the share, but for rounding.
    return max(0.0, min(share, float(low))), min(1.0, max(share, float(high)))


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided exact p of McNemar's test (1947), from the rows that one alone gets right."""
    if only_a + only_b == 0:
        return 1.0
    from statsmodels.stats.contingency_tables import mcnemar as test

    return min(1.0, float(test([[0, only_a], [only_b, 0]], exact=True).pvalue))


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for how many there are (Holm 1979), in the order given."""
    if not p:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(list(p), method="holm")[1]]


def reliability(
    answers: Iterable[tuple[float, bool]], bins: int = 10
) -> list[tuple[float, float, int]]:
    """Mean confidence, share right and rows of each equal bin of confidence that is not empty."""
    filled: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in answers:
        # 1.0 belongs to the last bin.
        filled.setdefault(min(int(confidence * bins), bins - 1), []).append((confidence, right))
    return [
        (mean([c for c, _ in rows]), mean([float(r) for _, r in rows]), len(rows))
        for _, rows in sorted(filled.items())
    ]


def pooled(tables: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The sum of confusion matrices, gold label -> predicted label -> rows."""
    total: dict[str, dict[str, int]] = {}
    for table in tables:
        for gold, row in table.items():
            line = total.setdefault(gold, {})
            for predicted, rows in row.items():
                line[predicted] = line.get(predicted, 0) + rows
    return total


def predicted_shares(confusion: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """The share of rows that each label is predicted for."""
    counts: dict[str, int] = {}
    for row in confusion.values():
        for label, rows in row.items():
            counts[label] = counts.get(label, 0) + rows
    all_rows = sum(counts.values()) or 1
    return {label: rows / all_rows for label, rows in counts.items()}
