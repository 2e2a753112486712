"""How students fare in the middle of their training: accuracy, KL to the teacher, cross-entropy over steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from instil.report.charts import Line, Panel, Pen, Point, Unit, line_chart
from instil.report.checkpoints import Measured, Milestone, milestones
from instil.report.drawing import Sketch
from instil.report.groups import Group

AXIS = "optimiser steps"
_Measure = Callable[[Milestone], Measured | None]
_CURVES: tuple[tuple[str, str, str, Unit, _Measure], ...] = (
    ("accuracy", "accuracy", "accuracy", "share", lambda one: one.accuracy),
    ("kl", "KL to the teacher", "KL to the teacher, nats a token", "quantity", lambda one: one.kl),
    (
        "cross-entropy",
        "cross-entropy of the gold answers",
        "cross-entropy, nats a token",
        "quantity",
        lambda one: one.cross_entropy,
    ),
)


def training_curves(
    groups: Sequence[Group],
    *,
    pen: Callable[[Group], Pen],
    name: Callable[..., str],
    title: Callable[[str], str],
) -> Iterator[Sketch]:
    """A figure a quantity, a line a group; nothing where no group has two checkpoints.

    Args:
        groups: Whose students; those without checkpoints are left out.
        pen: What a group's line looks like.
        name: Makes a figure's name of its parts.
        title: Makes a figure's title of what it shows.
    """
    for part, words, heading, unit, measure in _CURVES:
        lines = tuple(line for group in groups if (line := _line(group, pen(group), measure)))
        if any(len(line.points) > 1 for line in lines):
            yield line_chart(
                name("training", part),
                title(f"Validation rows: {words} over training"),
                AXIS,
                [Panel(heading, unit, lines, limits=_limits(part, lines))],
                marked="kept checkpoint",
            )


def _line(group: Group, pen: Pen, measure: _Measure) -> Line | None:
    points = tuple(
        Point(one.step, found.mean, found.low, found.high, marked=one.kept > 0)
        for one in milestones(group)
        if (found := measure(one))
    )
    return Line(group.label(without={"model"}), pen, points) if points else None


def _limits(part: str, lines: Sequence[Line]) -> tuple[float, float] | None:
    """A KL is read against 0; accuracy and cross-entropy against where they began."""
    if part == "kl":
        return None
    ends = [v for line in lines for p in line.points for v in (p.y, p.low, p.high) if v is not None]
    low, high = min(ends), max(ends)
    room = max(0.02, 0.06 * (high - low))
    return max(0.0, low - room), high + room
