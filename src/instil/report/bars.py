"""Bar charts of several methods, with one bar per evaluation set.

The colour of a bar shows the method, its hatching the set.
"""

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
"""Hatching of the sets, in order; the fifth set has the first hatching again."""
THICKNESS = 0.3
"""Thickness of a bar in inches."""


@dataclass(frozen=True)
class Bars:
    """The bars of one method: one point per set, None if it was not scored."""

    label: str
    pen: Pen
    points: tuple[Point | None, ...]


def bar_chart(name: str, title: str, sets: Sequence[str], bars: Sequence[Bars]) -> Sketch:
    """Shares with their intervals: methods from top to bottom, with one bar per set."""
    places: list[float] = []
    height = 0.1
    for method in bars:
        lines = wrapped(method.label).count("\n") + 1
        needed = max(THICKNESS * 0.9 * len(sets), 0.145 * lines) + 0.17
        places.append(height + needed / 2)
        height += needed
    ends = [p.y if p.high is None else p.high for method in bars for p in method.points if p]
    longest = max([*ends, 0.02])

    def draw(canvas: Canvas, inks: dict[Ink, str]) -> None:
        from matplotlib.patches import Patch
        from matplotlib.ticker import FuncFormatter

        axes = canvas.subplots()
        for place, method in zip(places, bars, strict=True):
            _draw_bars(axes, place, method, inks, longest)
        axes.set_yticks(places, [wrapped(method.label) for method in bars], fontsize=8.5)
        axes.set_ylim(height, 0)
        # Leave space on the right for the value after the longest interval.
        axes.set_xlim(0, longest * 1.24)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
        axes.set_title("accuracy with 95 % interval")
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

    values = [
        f"{method.label}: "
        + ", ".join(_described(s, p) for s, p in zip(sets, method.points, strict=True) if p)
        for method in bars
    ]
    description = f"Accuracy with 95 % intervals. {'; '.join(values)}."
    return Sketch(name, title, description, draw, height + 0.55 + 0.2 * len(sets))


def _draw_bars(
    axes: Axes, place: float, method: Bars, inks: dict[Ink, str], longest: float
) -> None:
    color, thick = inks[method.pen.ink], THICKNESS * 0.9
    for number, point in enumerate(method.points):
        if point is None:
            continue
        at = place + (number - (len(method.points) - 1) / 2) * thick
        filling = FILLINGS[number % len(FILLINGS)]
        axes.barh(
            at,
            point.y,
            height=thick * 0.86,
            # Paler than its edge, so that the interval is visible on it in light and dark pages.
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


def _described(name: str, point: Point) -> str:
    if point.low is None or point.high is None:
        return f"{name} {percent(point.y)}"
    return f"{name} {percent(point.y)} ({percent(point.low)} to {percent(point.high)})"
