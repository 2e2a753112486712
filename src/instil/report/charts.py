"""The charts of a report: lines over an axis, dots with intervals, and reliability diagrams.

Lines differ in colour, marker and dash, so a reader does not need colours to distinguish them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from instil.report.drawing import Ink, Sketch
from instil.report.numerals import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Unit = Literal["share", "quantity"]
LABEL_CHARACTERS = 22
"""Maximum characters per line in the name of a setting."""
MOST_BANDS = 5
"""Maximum lines in a panel whose intervals are drawn as bands."""


class Point(NamedTuple):
    """A value at a position on the axis, with an optional interval; marked points have a ring."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    marked: bool = False


@dataclass(frozen=True)
class Pen:
    """What a line looks like."""

    ink: Ink
    marker: str = "o"
    dash: str = "-"


@dataclass(frozen=True)
class Line:
    """A line over the axis; it is flat if the method does not depend on the axis."""

    label: str
    pen: Pen
    points: tuple[Point, ...]
    flat: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line: chance, or the majority label's share."""

    label: str
    value: float
    dash: str


@dataclass(frozen=True)
class Panel:
    """A panel of a chart: its title, unit, lines and levels."""

    title: str
    unit: Unit
    lines: tuple[Line, ...]
    levels: tuple[Level, ...] = ()
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Dot:
    """A labelled dot with its value."""

    label: str
    pen: Pen
    point: Point = field(default=Point(0, 0))


def line_chart(
    name: str,
    title: str,
    axis: str,
    panels: Sequence[Panel],
    *,
    log: bool = False,
    marked: str = "marked",
) -> Sketch:
    """Lines over one axis, in panels above a legend; `marked` is the name of ringed points."""
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    levels = list(dict.fromkeys(level.label for panel in panels for level in panel.levels))
    if any(p.marked for panel in panels for line in panel.lines for p in line.points):
        levels.append(marked)
    long = max((len(label) for label in [*labels, *levels]), default=0) > 26
    columns = 1 if long else 2
    rows = -(-(len(labels) + len(levels)) // columns)

    def draw(canvas: Canvas, inks: dict[Ink, str]) -> None:
        axes_of = canvas.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        handles: dict[str, Any] = {}
        for axes, panel in zip(axes_of, panels, strict=True):
            handles |= _draw_panel(axes, panel, inks, log=log)
            ringed = [p for line in panel.lines for p in line.points if p.marked]
            if ringed:
                handles[marked] = _draw_rings(axes, ringed, inks)
                axes.tick_params("x", pad=8)  # space for a ring on the axis
        axes_of[-1].set_xlabel(axis)
        canvas.legend(
            [handles[label] for label in [*labels, *levels]],
            [*labels, *levels],
            loc="outside lower left",
            ncols=columns,
            frameon=False,
            fontsize=8.5,
            handlelength=3.2,
            columnspacing=1.2,
        )

    height = 2.15 * len(panels) + (0.6 if len(panels) == 1 else 0.25) + 0.19 * rows
    return Sketch(
        name, title, " ".join(_described(panel, axis, marked) for panel in panels), draw, height
    )


def _draw_panel(axes: Axes, panel: Panel, inks: dict[Ink, str], *, log: bool) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    places = sorted({p.x for line in panel.lines if not line.flat for p in line.points})
    if log:
        axes.set_xscale("log")
        axes.minorticks_off()
    crowded = len(panel.lines) > MOST_BANDS
    beside = [line for line in panel.lines if not line.flat]
    for line in panel.lines:
        # With many lines, bands would cover each other, so intervals are bars side by side.
        aside = beside.index(line) - (len(beside) - 1) / 2 if crowded and not line.flat else 0.0
        shift = 0.012 * aside
        handles[line.label] = _draw_line(axes, line, inks, shift, places, log=log)
        _draw_interval(axes, line, inks, shift, places, log=log, bars=crowded)
    for level in panel.levels:
        handles[level.label] = axes.axhline(
            level.value, color=inks["plain"], lw=1.1, ls=level.dash, zorder=1
        )
    # Label every measured position, if there is enough space.
    if places and len(places) <= 8 and (log or _far_apart(places)):
        axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_title(panel.title)
    axes.grid(axis="y")
    if panel.limits:
        axes.set_ylim(*panel.limits)
    else:
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.06 * axes.dataLim.y1))
    _label_ticks(axes, panel.unit)
    return handles


def _far_apart(places: Sequence[float]) -> bool:
    return all(b - a >= 0.045 * (places[-1] - places[0]) for a, b in pairwise(places))


def _draw_rings(axes: Axes, points: Sequence[Point], inks: dict[Ink, str]) -> Any:
    (handle,) = axes.plot(
        [point.x for point in points],
        [point.y for point in points],
        "o",
        mfc="none",
        mec=inks["ink"],
        ms=11,
        mew=1.1,
        zorder=4,
        clip_on=False,
    )
    return handle


def _draw_line(
    axes: Axes,
    line: Line,
    inks: dict[Ink, str],
    shift: float,
    places: Sequence[float],
    *,
    log: bool,
) -> Any:
    style: dict[str, Any] = {
        "color": inks[line.pen.ink],
        "ls": line.pen.dash,
        "marker": line.pen.marker,
    }
    if line.flat:
        # From edge to edge, with markers only there: the method has no position on the axis.
        (handle,) = axes.plot(
            [0, 1],
            [line.points[0].y] * 2,
            transform=axes.get_yaxis_transform(),
            clip_on=False,
            lw=1.2,
            ms=4.5,
            zorder=2,
            **style,
        )
        return handle
    xs = [_shifted(p.x, shift, places, log=log) for p in line.points]
    (handle,) = axes.plot(xs, [p.y for p in line.points], lw=1.9, ms=5.5, zorder=3, **style)
    return handle


def _draw_interval(
    axes: Axes,
    line: Line,
    inks: dict[Ink, str],
    shift: float,
    places: Sequence[float],
    *,
    log: bool,
    bars: bool,
) -> None:
    ends = [(p.x, p.low, p.high) for p in line.points if p.low is not None and p.high is not None]
    color = inks[line.pen.ink]
    if not ends or (bars and line.flat):
        return
    if line.flat:
        axes.axhspan(ends[0][1], ends[0][2], color=color, alpha=0.1, lw=0)
    elif bars:
        xs = [_shifted(x, shift, places, log=log) for x, _, _ in ends]
        axes.vlines(xs, [e[1] for e in ends], [e[2] for e in ends], color=color, lw=1.1, alpha=0.75)
    else:
        places_of, lows, highs = zip(*ends, strict=True)
        axes.fill_between(places_of, lows, highs, color=color, alpha=0.13, lw=0)


def _shifted(x: float, shift: float, places: Sequence[float], *, log: bool) -> float:
    if log:
        return float(x * (places[-1] / places[0]) ** shift)
    return x + shift * (places[-1] - places[0])


def _label_ticks(axes: Axes, unit: Unit) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.locator_params(axis="y", nbins=5)
    write: Callable[[float, int], str] = lambda y, _: f"{y:,g}"  # noqa: E731 - the form that a ticker needs
    if unit == "share":
        write = lambda y, _: f"{100 * y:.0f} %"  # noqa: E731 - the same
    axes.yaxis.set_major_formatter(FuncFormatter(write))


def _described(panel: Panel, axis: str, marked: str) -> str:
    write = percent if panel.unit == "share" else number
    sentences = []
    for line in panel.lines:
        points = [
            ("" if line.flat else f"at {p.x:g} ")
            + write(p.y)
            + _interval(p, write)
            + (f" {marked}" if p.marked else "")
            for p in line.points
        ]
        where = f", independent of {axis}" if line.flat else ""
        sentences.append(f"{line.label}{where}: {', '.join(points)}")
    sentences += [f"{level.label} {write(level.value)}" for level in panel.levels]
    return f"{panel.title}. {'; '.join(sentences)}."


def _interval(point: Point, write: Callable[[float], str]) -> str:
    if point.low is None or point.high is None:
        return ""
    return f" ({write(point.low)} to {write(point.high)})"


def dot_chart(
    name: str,
    title: str,
    columns: Sequence[tuple[str, Unit, Sequence[Dot]]],
    *,
    levels: Sequence[Level] = (),
    limits: tuple[float, float] | None = None,
) -> Sketch:
    """Dots with intervals: one line per setting, in panels from top to bottom."""

    def draw(canvas: Canvas, inks: dict[Ink, str]) -> None:
        axes_of = canvas.subplots(
            len(columns), 1, squeeze=False, height_ratios=[len(dots) for _, _, dots in columns]
        )[:, 0]
        for axes, (heading, unit, dots) in zip(axes_of, columns, strict=True):
            _draw_dots(axes, heading, unit, dots, inks)
            if unit == "share":
                for level in levels:
                    axes.axvline(level.value, color=inks["plain"], lw=1.1, ls=level.dash, zorder=1)
                    axes.plot([], [], color=inks["plain"], lw=1.1, ls=level.dash, label=level.label)
                axes.set_xlim(*(limits or (0, 1)))
        if levels:
            handles, labels = axes_of[0].get_legend_handles_labels()
            canvas.legend(
                handles, labels, loc="outside lower left", ncols=2, frameon=False, fontsize=8.5
            )

    sentences = []
    for heading, unit, dots in columns:
        write = percent if unit == "share" else number
        values = [f"{dot.label} {write(dot.point.y)}{_interval(dot.point, write)}" for dot in dots]
        sentences.append(f"{heading}: {'; '.join(values)}.")
    sentences += [f"{level.label} {percent(level.value)}." for level in levels]
    tallest = max(wrapped(dot.label).count("\n") for _, _, dots in columns for dot in dots)
    each = {"share": 0.4 + 0.12 * tallest, "quantity": 0.3 + 0.12 * tallest}
    height = sum(0.62 + each[unit] * len(dots) for _, unit, dots in columns)
    height += 0.3 if levels else 0
    return Sketch(name, title, " ".join(sentences), draw, height)


def wrapped(label: str) -> str:
    """The name of a setting in short lines, which leaves space for the plot."""
    return textwrap.fill(label, LABEL_CHARACTERS, break_long_words=False, break_on_hyphens=False)


def _draw_dots(
    axes: Axes, heading: str, unit: Unit, dots: Sequence[Dot], inks: dict[Ink, str]
) -> None:
    from matplotlib.ticker import FuncFormatter

    write = percent if unit == "share" else number
    longest = max((dot.point.y for dot in dots), default=0) or 1
    for line, dot in enumerate(dots):
        color, point = inks[dot.pen.ink], dot.point
        if point.low is not None and point.high is not None:
            axes.plot([point.low, point.high], [line, line], color=color, lw=2.2, zorder=2)
        axes.plot([point.y], [line], dot.pen.marker, color=color, ms=7, zorder=3, clip_on=False)
        if unit == "share":
            axes.text(point.y, line - 0.22, write(point.y), ha="center", va="bottom", fontsize=8.5)
        else:  # without an interval there is space beside the dot
            beside = point.y + 0.03 * longest
            axes.text(beside, line, write(point.y), va="center_baseline", fontsize=8.5)
    axes.set_yticks(range(len(dots)), [wrapped(dot.label) for dot in dots], fontsize=8.5)
    axes.set_ylim(len(dots) - 0.5, -0.8 if unit == "share" else -0.5)
    axes.set_title(heading)
    axes.grid(axis="x")
    axes.locator_params(axis="x", nbins=4)
    if unit == "share":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
    else:
        axes.set_xlim(0, longest * 1.22)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))


def reliability_chart(name: str, title: str, lines: Sequence[Line]) -> Sketch:
    """Share of right answers over confidence, one marker per bin."""

    def draw(canvas: Canvas, inks: dict[Ink, str]) -> None:
        axes = canvas.subplots()
        axes.plot([0, 1], [0, 1], color=inks["plain"], lw=1.1, ls=":", label="perfect calibration")
        for line in lines:
            xs, ys = [p.x for p in line.points], [p.y for p in line.points]
            axes.plot(
                xs,
                ys,
                color=inks[line.pen.ink],
                marker=line.pen.marker,
                ls=line.pen.dash,
                lw=1.7,
                ms=5.5,
                label=line.label,
            )
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("probability of the predicted label")
        axes.set_title("share of right answers")
        axes.grid()
        from matplotlib.ticker import FuncFormatter

        for of in (axes.xaxis, axes.yaxis):
            of.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
        handles, labels = axes.get_legend_handles_labels()
        long = max(len(label) for label in labels) > 26
        canvas.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=1 if long else 2,
            frameon=False,
            fontsize=8.5,
            handlelength=3.2,
        )

    values = [
        f"{line.label}: "
        + ", ".join(f"probability {percent(p.x, 0)}, right {percent(p.y, 0)}" for p in line.points)
        for line in lines
    ]
    described = f"Rows in ten equal bins of the predicted label's probability. {'; '.join(values)}."
    return Sketch(name, title, described, draw, 3.6 + 0.19 * len(lines))
