"""Simulates evaluations: how often does recovery's interval hold the true value, and the gate fail?

    python benchmarks/recovery_interval.py [--output benchmarks/results/recovery_interval.json]

A student follows the context with a probability that is its true recovery, and zero-shot otherwise.
Then some of its right and wrong rows change places, because a student is also right and wrong on
other rows than its teacher. Nothing is trained. The gate is `--min-recovery 0.9`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from instil.results.recovery import recovery, recovery_interval
from instil.system import environment

RUNS = 1000
LEAST = 0.9
UNSEEN = (0.0, 0.125, 0.25, 0.5)
CHOSEN = 0.25
SETTINGS = [  # zero-shot, in-context, true recovery, rows, share of right rows that change places
    (0.40, 0.85, 0.96, 100, 0.05),
    (0.40, 0.85, 0.96, 100, 0.0),
    (0.00, 0.82, 0.96, 100, 0.05),
    (0.60, 0.80, 0.96, 100, 0.05),
    (0.40, 0.85, 0.96, 300, 0.05),
    (0.10, 0.50, 0.96, 30, 0.05),
    (0.40, 0.85, 0.80, 100, 0.05),
    (0.40, 0.85, 0.60, 100, 0.05),
    (0.40, 0.85, 0.80, 300, 0.05),
]

Rows = np.ndarray[Any, np.dtype[np.bool_]]


def evaluate(
    draw: np.random.Generator, zero: float, context: float, kept: float, rows: int, moved: float
) -> tuple[Rows, Rows, Rows]:
    """Which rows zero-shot, in-context and the student get right."""
    stays = 0.95  # of the rows that zero-shot gets right, those that the context gets right, too
    zeros = draw.random(rows) < zero
    wins = (context - zero * stays) / (1 - zero)
    contexts = np.where(zeros, draw.random(rows) < stays, draw.random(rows) < wins)
    students = np.where(draw.random(rows) < kept, contexts, zeros)
    right, wrong = np.flatnonzero(students), np.flatnonzero(~students)
    swapped = draw.binomial(min(len(right), len(wrong)), moved)
    students[draw.permutation(right)[:swapped]] = False
    students[draw.permutation(wrong)[:swapped]] = True
    return zeros, contexts, students


def simulate(zero: float, context: float, kept: float, rows: int, moved: float) -> dict[str, Any]:
    """Coverage of the interval by weight of unseen outcomes, and how often each gate fails."""
    draw = np.random.default_rng(0)
    covered = dict.fromkeys(UNSEEN, 0)
    unbounded = dict.fromkeys(UNSEEN, 0)
    failed = dict.fromkeys(("upper", "estimate", "lower"), 0)
    for _ in range(RUNS):
        answers = evaluate(draw, zero, context, kept, rows, moved)
        means = [float(right.mean()) for right in answers]
        share = recovery(zero_shot=means[0], in_context=means[1], student=means[2])
        failed["estimate"] += share is None or share < LEAST
        for unseen in UNSEEN:
            found = recovery_interval(*answers, unseen=unseen)  # type: ignore[arg-type]
            unbounded[unseen] += found is None
            covered[unseen] += found is None or found[0] <= kept <= found[1]
            if unseen == CHOSEN:
                failed["upper"] += found is None or found[1] < LEAST
                failed["lower"] += found is None or found[0] < LEAST
    return {
        "zero_shot": zero,
        "in_context": context,
        "recovery": kept,
        "rows": rows,
        "moved": moved,
        "covered": {str(unseen): number / RUNS for unseen, number in covered.items()},
        "unbounded": {str(unseen): number / RUNS for unseen, number in unbounded.items()},
        "failed": {bound: number / RUNS for bound, number in failed.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = []
    for setting in SETTINGS:
        found.append(simulate(*setting))
        print(json.dumps(found[-1]), flush=True)
    if arguments.output:
        record = {
            "command": "python benchmarks/recovery_interval.py",
            "runs": RUNS,
            "results": found,
            "environment": environment.describe(),
        }
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
