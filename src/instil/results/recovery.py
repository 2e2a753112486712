r"""Recovery: the share of the context's gain in accuracy that a student keeps, and its interval.

$$ (\text{student} - \text{zero-shot}) / (\text{in-context} - \text{zero-shot}) $$

All three methods answer the same rows, so the interval comes from a paired bootstrap over rows. It
is the Bayesian bootstrap (Rubin 1981): rows get random weights in place of random counts. A plain
bootstrap knows only outcomes that were seen. If the student loses none of the rows that the context
wins, it says that no student could lose one. So each of the eight outcomes of a row (right or wrong,
for three methods) gets a quarter of a row more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

DRAWS = 10_000
LEVEL = 0.95
UNSEEN = 0.25
"""Weight in rows of each outcome, beside the rows that have it.

See `benchmarks/recovery_interval.py` for the coverage with other weights.
"""


def recovery(*, zero_shot: float, in_context: float, student: float) -> float | None:
    """Returns the share of the context's gain that the student recovers; None without a gain.

    Args:
        zero_shot: Accuracy without the context.
        in_context: Accuracy with the context.
        student: Accuracy of the student.
    """
    gain = in_context - zero_shot
    return (student - zero_shot) / gain if gain > 0 else None


def recovery_interval(
    zero_shot: Sequence[float],
    in_context: Sequence[float],
    student: Sequence[float],
    *,
    unseen: float = UNSEEN,
) -> tuple[float, float] | None:
    """Returns the 95 % interval of recovery.

    Returns None if the context's gain is not clear of zero, that is, if more than 2.5 % of the
    draws have no gain. A share of it could then be any number. The same rows always give the same
    interval.

    Args:
        zero_shot: For each row, whether zero-shot is right (1 or 0), or the sum over seeds.
        in_context: The same for in-context.
        student: The same for the student.
        unseen: Weight in rows of each of the eight outcomes.
    """
    import numpy as np

    if not len(student):
        return None
    rows = np.stack([zero_shot, in_context, student], axis=1).astype(float)
    seen, counts = np.unique(rows, axis=0, return_counts=True)
    outcomes = np.concatenate([seen, list(product((0.0, 1.0), repeat=3))])
    weights = np.concatenate([counts, np.full(8, unseen)])
    # Gamma variables are Dirichlet weights up to a factor, and the ratio does not depend on it.
    drawn = np.random.default_rng(0).standard_gamma(weights, size=(DRAWS, len(weights)))
    zeros, contexts, students = (drawn @ outcomes).T
    gain = contexts - zeros
    shares = np.sort((students - zeros)[gain > 0] / gain[gain > 0])
    # In a draw without a gain, recovery could be any number: it counts at both ends.
    tail = int(DRAWS * (1 - LEVEL) / 2)
    unbounded = DRAWS - len(shares)
    if unbounded > tail:
        return None
    return float(shares[tail - unbounded]), float(shares[-1 - (tail - unbounded)])
