"""Bars of several sets side by side, a method a place: a set is told by its filling, and not by colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from instil.report.charts import Pen, Point, wrapped
from instil.report.drawing import Ink, Sketch
from instil.report.numerals import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

FILLINGS = ("", "//////", "......", "xxxxxx")
"""Of the sets, in their order; a fifth begins anew."""
THICK = 0.3
"""Of a bar, in the chart's own units: inches of paper."""


@dataclass(frozen=True)
class Bars:
    """The bars of one method: a point a set, None where it was not scored."""

    label: str
    pen: Pen
    points: tuple[Point | None, ...]


def bar_chart(name: str, title: str, sets: Sequence[str], bars: Sequence[Bars]) -> Sketch:
    """Shares with their intervals, methods one below the other, each with a bar for every set."""
    places: list[float] = []
    height = 0.1
    for one in bars:
        lines = wrapped(one.label).count("\n") + 1
        needed = max(THICK * 0.9 * len(sets), 0.145 * lines) + 0.17
        places.append(height + needed / 2)
        height += needed
    ends = [p.y if p.high is None else p.high for one in bars for p in one.points if p]
    longest = max([*ends, 0.02])

    def draw(canvas: Canvas, inks: dict[Ink, str]) -> None:
        from matplotlib.patches import Patch
        from matplotlib.ticker import FuncFormatter

        axes = canvas.subplots()
        for place, one in zip(places, bars, strict=True):
            _draw_bars(axes, place, one, inks, longest)
        axes.set_yticks(places, [wrapped(one.label) for one in bars], fontsize=8.5)
        axes.set_ylim(height, 0)
        # The room on the right is for the value that stands at the end of the longest interval.
        axes.set_xlim(0, longest * 1.24)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
        axes.set_title("accuracy, with its 95 % interval")
        axes.grid(axis="x")
        if len(sets) > 1:
            patches = [
                Patch(facecolor=face, edgecolor=inks["plain"], hatch=filling, label=found)
                for number, found in enumerate(sets)
                for filling in [FILLINGS[number % len(FILLINGS)]]
                for face in ["none" if filling else (inks["plain"], 0.62)]
            ]
            canvas.legend(
                handles=patches,
                loc="outside lower left",
                ncols=1 if max(map(len, sets)) > 24 else 2,
                frameon=False,
                fontsize=8.5,
            )

    told = [
        f"{one.label}: " + ", ".join(_say(s, p) for s, p in zip(sets, one.points, strict=True) if p)
        for one in bars
    ]
    description = f"Accuracy with 95 % intervals. {'; '.join(told)}."
    return Sketch(name, title, description, draw, height + 0.55 + 0.2 * len(sets))


def _draw_bars(axes: Axes, place: float, one: Bars, inks: dict[Ink, str], longest: float) -> None:
    color, thick = inks[one.pen.ink], THICK * 0.9
    for number, point in enumerate(one.points):
        if point is None:
            continue
        at = place + (number - (len(one.points) - 1) / 2) * thick
        filling = FILLINGS[number % len(FILLINGS)]
        axes.barh(
            at,
            point.y,
            height=thick * 0.86,
            # Paler than its edge, so that the interval is seen on it, on light and on dark paper.
            color="none" if filling else (color, 0.62),
            edgecolor=color,
            hatch=filling,
            lw=1,
        )
        end = point.y
        if point.low is not None and point.high is not None:
            axes.plot([point.low, point.high], [at, at], color=inks["ink"], lw=1.3, zorder=3)
            end = max(end, point.high)
        axes.text(end + 0.02 * longest, at, percent(point.y), va="center_baseline", fontsize=8.5)


def _say(name: str, point: Point) -> str:
    if point.low is None or point.high is None:
        return f"{name} {percent(point.y)}"
    return f"{name} {percent(point.y)} ({percent(point.low)} to {percent(point.high)})"
