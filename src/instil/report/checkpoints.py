"""Students in the middle of their training, the mean over seeds: what training curves are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean as mean

from instil.report.analysis import Analysis
from instil.report.groups import Group, mean_of
from instil.report.numerals import MISSING, NBSP, count, fixed, percent
from instil.report.table import Cell, Row, Table
from instil.results.cell import Checkpoint
from instil.results.statistics import t_interval, wilson


@dataclass(frozen=True)
class Measured:
    """A quantity at a step, the mean over seeds, with its 95 % interval where there is one."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Milestone:
    """A group's students after a number of steps, on validation rows.

    Attributes:
        step: Optimiser steps.
        seeds: How many of its students were judged then.
        accuracy: Its interval is Student's t over seeds where they differ, and Wilson's over rows
            otherwise.
        cross_entropy: Of the gold answers, nats a token.
        kl: KL(teacher || student), nats a token; None without a teacher.
        agreement: Share of tokens where both name the same; None without a teacher.
        kept: Of how many seeds this is the student that was judged in the end.
    """

    step: int
    seeds: int
    accuracy: Measured
    cross_entropy: Measured
    kl: Measured | None
    agreement: float | None
    kept: int


def milestones(group: Group) -> list[Milestone]:
    """A group's checkpoints, the earliest first; empty where its students were judged only once."""
    by_step: dict[int, list[Checkpoint]] = {}
    for cell in group.cells:
        for found in cell.training.checkpoints if cell.training else []:
            by_step.setdefault(found.step, []).append(found)
    return [_milestone(step, found) for step, found in sorted(by_step.items())]


def _milestone(step: int, found: Sequence[Checkpoint]) -> Milestone:
    close = [one.fidelity for one in found if one.fidelity]
    return Milestone(
        step=step,
        seeds=len(found),
        accuracy=_accuracy(found),
        cross_entropy=_measured([one.cross_entropy for one in found]),
        kl=_measured([one.kl_to_teacher for one in close]) if close else None,
        agreement=mean_of(one.agreement for one in close),
        kept=sum(one.kept for one in found),
    )


def _accuracy(found: Sequence[Checkpoint]) -> Measured:
    values = [one.accuracy.value for one in found]
    rows = min(one.accuracy.n for one in found)
    low, high = t_interval(values) or wilson(mean(values), rows)
    return Measured(mean(values), max(0.0, low), min(1.0, high))


def _measured(values: Sequence[float]) -> Measured:
    low, high = t_interval(values) or (None, None)
    # A divergence and a cross-entropy are never negative, though a symmetric interval may be.
    return Measured(mean(values), None if low is None else max(0.0, low), high)


def checkpoints(analysis: Analysis) -> Table:
    """Every group's checkpoints, a line each."""
    rows = [
        Row(
            f"{group.label()}: step{NBSP}{one.step:,}",
            group.method,
            (
                Cell(percent(one.accuracy.mean), one.accuracy.mean),
                Cell(fixed(one.cross_entropy.mean, 3), one.cross_entropy.mean),
                Cell(fixed(one.kl.mean, 3), one.kl.mean) if one.kl else Cell(MISSING, None),
                Cell(MISSING, None)
                if one.agreement is None
                else Cell(percent(one.agreement), one.agreement),
                Cell(count(one.seeds), one.seeds),
                Cell(count(one.kept), one.kept),
            ),
        )
        for group in analysis.groups
        for one in milestones(group)
    ]
    return Table(
        caption="Checkpoints on validation rows, the mean over seeds",
        first="Method: step",
        columns=(
            "Accuracy",
            "Cross-entropy, nats a token",
            "KL to teacher, nats a token",
            "Agreement",
            "Seeds",
            "Kept by",
        ),
        rows=tuple(rows),
    )
