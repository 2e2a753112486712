"""Draws figures, as SVG elements of a page or as separate files.

matplotlib does not know CSS. So a figure of a page is drawn in placeholder colours that nothing
else uses, and these are then replaced by `currentColor` and the page's custom properties. So the
same SVG works in light pages, in dark pages and on paper. Text remains text (`svg.fonttype: none`)
in the font of the page. A figure in a separate file is drawn directly in its final colours.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Ink = Literal[
    "ink",
    "rule",
    "plain",
    "zero-shot",
    "in-context",
    "distilled",
    "vanilla",
    "pattern",
    "pattern-context",
]

# No two placeholders are the same, and matplotlib uses none of them by default.
PLACEHOLDERS: dict[Ink, str] = {
    "ink": "#010203",
    "rule": "#010204",
    "plain": "#010205",
    "zero-shot": "#010206",
    "in-context": "#010207",
    "distilled": "#010208",
    "vanilla": "#010209",
    "pattern": "#01020a",
    "pattern-context": "#01020b",
}
# The colours of the light page.
ON_PAPER: dict[Ink, str] = {
    "ink": "#1d1f23",
    "rule": "#d6d3ca",
    "plain": "#8b8f99",
    "zero-shot": "#d55e00",
    "in-context": "#0072b2",
    "distilled": "#009e73",
    "vanilla": "#b8588f",
    "pattern": "#c78500",
    "pattern-context": "#1d1f23",
}

WIDTH = 4.4
"""Width in inches. A screen of 360 px shows it at 80 %, where a 9-point font is still legible."""


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        name: An identifier that is unique in the page.
        title: A few words on what it shows.
        description: Sentences with the numbers, for readers who cannot see the figure.
        svg: An `<svg>` element.
    """

    name: str
    title: str
    description: str
    svg: str


@dataclass(frozen=True)
class Sketch:
    """A figure before drawing; `draw` gets the canvas and the colour of each ink."""

    name: str
    title: str
    description: str
    draw: Callable[[Canvas, dict[Ink, str]], None]
    height: float

    def inline(self) -> Figure:
        """Draws the figure as an element of a page."""
        written = io.StringIO()
        self._write(written, "svg", PLACEHOLDERS)
        return Figure(
            self.name, self.title, self.description, _inline(self.name, written.getvalue())
        )

    def save(self, path: Path) -> None:
        """Draws the figure into an SVG or PDF file, according to the file's extension."""
        written = io.BytesIO()
        self._write(written, path.suffix.removeprefix("."), ON_PAPER)
        path.write_bytes(written.getvalue())

    def _write(self, target: Any, format: str, inks: dict[Ink, str]) -> None:
        # `Figure` without pyplot needs no global state, no display and no certain backend.
        from matplotlib.figure import Figure as Canvas

        with _settings(self.name, inks):
            canvas = Canvas(figsize=(WIDTH, self.height), layout="constrained")
            self.draw(canvas, inks)
            undated = {"Date": None} if format == "svg" else {"CreationDate": None}
            with warnings.catch_warnings():
                # The text of an SVG is right without a glyph, and a long label may leave no room.
                warnings.filterwarnings("ignore", "Glyph|constrained_layout", UserWarning)
                canvas.savefig(target, format=format, metadata=undated)


def _style(inks: dict[Ink, str]) -> dict[str, Any]:
    ink, rule = inks["ink"], inks["rule"]
    return {
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        # Labels may come from data, so a dollar sign must not start a formula.
        "text.parse_math": False,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "xtick.color": rule,
        "ytick.color": rule,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "axes.edgecolor": rule,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "grid.color": rule,
        "grid.linewidth": 0.6,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
    }


@contextmanager
def _settings(name: str, inks: dict[Ink, str]) -> Iterator[None]:
    # Imported here because importing matplotlib takes half a second. The style starts from
    # matplotlib's defaults, so that a matplotlibrc file has no effect.
    from matplotlib import style

    with style.context(["default", {**_style(inks), "svg.hashsalt": f"instil-{name}"}]):
        yield


def _inline(name: str, document: str) -> str:
    """Turns an SVG document into an element of an HTML page, with the page's colours."""
    svg = document[document.index("<svg") :].rstrip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Every figure numbers its parts from 1, but ids must be unique in a page.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for ink, placeholder in PLACEHOLDERS.items():
        svg = svg.replace(placeholder, "currentColor" if ink == "ink" else f"var(--{ink})")
    return svg
