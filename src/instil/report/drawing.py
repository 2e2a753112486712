"""How a figure is drawn, for a page and for a file of its own.

matplotlib knows no CSS, so a figure of a page is drawn in stand-in colours that nothing else uses,
and these are then replaced by `currentColor` and the page's custom properties: one SVG serves a
light page, a dark one and paper. Text stays text (`svg.fonttype: none`), set in the page's own font.
A file of its own has no page around it and is drawn in the colours themselves.
"""

from __future__ import annotations

import io
import re
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

# Every stand-in differs from the others and from anything matplotlib draws by default.
STAND_INS: dict[Ink, str] = {
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
# Those of the page on light paper.
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
"""Inches. At 360 px of screen this is shown at four fifths, where 9 points are still legible."""


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        name: An identifier, unique in the page.
        title: What it shows, in a few words.
        description: The same in full sentences, with the numbers, for who cannot see it.
        svg: An `<svg>` element.
    """

    name: str
    title: str
    description: str
    svg: str


@dataclass(frozen=True)
class Sketch:
    """A figure yet to be drawn: `draw` is given the canvas and the colour of every ink."""

    name: str
    title: str
    description: str
    draw: Callable[[Canvas, dict[Ink, str]], None]
    height: float

    def inline(self) -> Figure:
        """Draws it as an element of the page."""
        written = io.StringIO()
        self._write(written, "svg", STAND_INS)
        return Figure(
            self.name, self.title, self.description, _inline(self.name, written.getvalue())
        )

    def save(self, path: Path) -> None:
        """Draws it as a file of its own: SVG or PDF, by the file's ending."""
        written = io.BytesIO()
        self._write(written, path.suffix.removeprefix("."), ON_PAPER)
        path.write_bytes(written.getvalue())

    def _write(self, target: Any, format: str, inks: dict[Ink, str]) -> None:
        # `Figure` without pyplot: no global state, no display, whatever backend the process uses.
        from matplotlib.figure import Figure as Canvas

        with _settings(self.name, inks):
            canvas = Canvas(figsize=(WIDTH, self.height), layout="constrained")
            self.draw(canvas, inks)
            undated = {"Date": None} if format == "svg" else {"CreationDate": None}
            canvas.savefig(target, format=format, metadata=undated)


def _style(inks: dict[Ink, str]) -> dict[str, Any]:
    ink, rule = inks["ink"], inks["rule"]
    return {
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        # A label may come from data, where a dollar sign is a dollar sign.
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
    # Imported here: matplotlib costs half a second that a reader of this module need not pay. The
    # style starts from matplotlib's defaults so that no matplotlibrc on the machine shows through.
    from matplotlib import style

    with style.context(["default", {**_style(inks), "svg.hashsalt": f"instil-{name}"}]):
        yield


def _inline(name: str, document: str) -> str:
    """An SVG document as an element of an HTML page, in the page's colours."""
    svg = document[document.index("<svg") :].rstrip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Every figure numbers its parts from one; in one page the names must differ.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for ink, stand_in in STAND_INS.items():
        svg = svg.replace(stand_in, "currentColor" if ink == "ink" else f"var(--{ink})")
    return svg
