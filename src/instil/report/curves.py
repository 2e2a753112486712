"""Training curves: loss, accuracy, KL and cross-entropy over steps, averaged over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean as mean

from instil.report.charts import Line, Panel, Pen, Point, Unit, line_chart
from instil.report.drawing import Sketch
from instil.report.groups import Group, mean_of
from instil.results.statistics import t_interval, wilson
from instil.results.training import Checkpoint, HeldOutLoss

AXIS = "optimiser steps"
MOST_MARKERS = 40
"""Maximum points of a loss curve that are drawn with markers."""


@dataclass(frozen=True)
class Measured:
    """The mean of a quantity over seeds, with its 95 % interval if there is one."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Milestone:
    """A group's students after a number of steps, evaluated on validation rows.

    Attributes:
        step: Optimiser steps.
        seeds: Number of students that were evaluated at this step.
        accuracy: Its interval is Student's t over seeds if the seeds differ, else Wilson's over
            rows; None without gold outputs.
        cross_entropy: Cross-entropy of the completions, nats per token.
        kl: KL(teacher || student), nats per token; None without a teacher.
        agreement: Share of tokens with the same top-1 prediction; None without a teacher.
        kept: Number of seeds that select this checkpoint.
    """

    step: int
    seeds: int
    accuracy: Measured | None
    cross_entropy: Measured
    kl: Measured | None
    agreement: float | None
    kept: int


_CURVES: tuple[tuple[str, str, str, Unit, Callable[[Milestone], Measured | None]], ...] = (
    ("accuracy", "accuracy", "accuracy", "share", lambda milestone: milestone.accuracy),
    (
        "kl",
        "KL to the teacher",
        "KL to the teacher, nats per token",
        "quantity",
        lambda milestone: milestone.kl,
    ),
    (
        "cross-entropy",
        "cross-entropy of the completions",
        "cross-entropy, nats per token",
        "quantity",
        lambda milestone: milestone.cross_entropy,
    ),
)


def milestones(group: Group) -> list[Milestone]:
    """A group's checkpoints, the earliest first; empty if there are none."""
    by_step: dict[int, list[Checkpoint]] = {}
    for cell in group.cells:
        for found in cell.training.checkpoints if cell.training else []:
            by_step.setdefault(found.step, []).append(found)
    return [_milestone(step, found) for step, found in sorted(by_step.items())]


def _milestone(step: int, found: Sequence[Checkpoint]) -> Milestone:
    fidelities = [checkpoint.fidelity for checkpoint in found if checkpoint.fidelity]
    return Milestone(
        step=step,
        seeds=len(found),
        accuracy=_accuracy(found),
        cross_entropy=_measured([checkpoint.cross_entropy for checkpoint in found]),
        kl=_measured([fidelity.kl_to_teacher for fidelity in fidelities]) if fidelities else None,
        agreement=mean_of(fidelity.agreement for fidelity in fidelities),
        kept=sum(checkpoint.kept for checkpoint in found),
    )


def _accuracy(found: Sequence[Checkpoint]) -> Measured | None:
    graded = [checkpoint.accuracy for checkpoint in found if checkpoint.accuracy]
    if not graded:
        return None
    values = [accuracy.value for accuracy in graded]
    low, high = t_interval(values) or wilson(mean(values), min(accuracy.n for accuracy in graded))
    return Measured(mean(values), max(0.0, low), min(1.0, high))


def _measured(values: Sequence[float]) -> Measured:
    low, high = t_interval(values) or (None, None)
    # A symmetric interval may go below 0, but a divergence or cross-entropy cannot.
    return Measured(mean(values), None if low is None else max(0.0, low), high)


def training_curves(
    groups: Sequence[Group],
    *,
    pen: Callable[[Group], Pen],
    name: Callable[..., str],
    title: Callable[[str], str],
) -> Iterator[Sketch]:
    """One figure per quantity, one line per group; none if no group has two checkpoints.

    Args:
        groups: The groups; those without checkpoints are left out.
        pen: Gives the pen of a group's line.
        name: Makes the name of a figure from its parts.
        title: Makes the title of a figure from a text.
    """
    for part, words, heading, unit, measure in _CURVES:
        lines = []
        for group in groups:
            points = tuple(
                Point(at.step, found.mean, found.low, found.high, marked=at.kept > 0)
                for at in milestones(group)
                if (found := measure(at))
            )
            if points:
                lines.append(Line(group.label(without={"model"}), pen(group), points))
        if any(len(line.points) > 1 for line in lines):
            yield line_chart(
                name("training", part),
                title(f"Validation rows: {words} over training"),
                AXIS,
                [Panel(heading, unit, tuple(lines), limits=_limits(part, lines))],
                marked="selected checkpoint",
            )


def loss_curves(
    groups: Sequence[Group],
    *,
    pen: Callable[[Group], Pen],
    name: Callable[..., str],
    title: Callable[[str], str],
) -> Iterator[Sketch]:
    """The training loss over steps, and below it the loss on held-out rows if it was measured.

    There is one line per group, averaged over seeds. Different methods have different losses, so
    there is no figure for several methods.

    Args:
        groups: The groups; those without a recorded loss are left out.
        pen: Gives the pen of a group's line.
        name: Makes the name of a figure from its parts.
        title: Makes the title of a figure from a text.
    """
    lines, held_out = [], []
    for group in groups:
        by_step: dict[int, list[float]] = {}
        for cell in group.cells:
            for step, loss in cell.training.loss if cell.training else []:
                by_step.setdefault(step, []).append(loss)
        points = tuple(Point(step, mean(losses)) for step, losses in sorted(by_step.items()))
        if measured := _held_out(group):
            held_out.append(Line(group.label(without={"model"}), pen(group), measured))
        drawn = pen(group)
        if len(points) > MOST_MARKERS:
            drawn = Pen(drawn.ink, "", drawn.dash)
        if points:
            lines.append(Line(group.label(without={"model"}), drawn, points))
    if lines and len({group.method for group in groups}) == 1:
        unit = "loss per token" if groups[0].written else "loss per row"
        panels = [Panel(unit, "quantity", tuple(lines))]
        if held_out:
            panels.append(Panel(f"{unit}, held-out rows", "quantity", tuple(held_out)))
        yield line_chart(
            name("loss"), title("Training loss"), AXIS, panels, marked="step that is kept"
        )


def _held_out(group: Group) -> tuple[Point, ...]:
    """The loss on held-out rows over steps; the steps that a seed keeps are marked."""
    by_step: dict[int, list[HeldOutLoss]] = {}
    for cell in group.cells:
        for seen in cell.training.held_out if cell.training else []:
            by_step.setdefault(seen.step, []).append(seen)
    return tuple(
        Point(step, mean(one.loss for one in seen), marked=any(one.kept for one in seen))
        for step, seen in sorted(by_step.items())
    )


def _limits(part: str, lines: Sequence[Line]) -> tuple[float, float] | None:
    """The range of the axis: for a KL it begins at 0, otherwise near the lowest value."""
    if part == "kl":
        return None
    ends = [v for line in lines for p in line.points for v in (p.y, p.low, p.high) if v is not None]
    low, high = min(ends), max(ends)
    room = max(0.02, 0.06 * (high - low))
    return max(0.0, low - room), high + room
