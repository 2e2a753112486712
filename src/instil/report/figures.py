"""The figures of a run, drawn by matplotlib and returned as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from instil.methods import PHASES, RunMethodName
from instil.report.drawing import STAND_INS, Figure, Sketch
from instil.report.numerals import count, fixed, interval, number, percent
from instil.results.schema import Pair, Proportion, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

TITLES: dict[RunMethodName, str] = {
    "zero_shot": "Zero-shot",
    "in_context": "In-context",
    "distilled": "Distilled",
}

_PLAIN = STAND_INS["plain"]
_METHOD_INK: dict[RunMethodName, str] = {
    "zero_shot": STAND_INS["zero-shot"],
    "in_context": STAND_INS["in-context"],
    "distilled": STAND_INS["distilled"],
}


@dataclass(frozen=True)
class _Bar:
    label: str
    value: float
    text: str
    color: str


def accuracy(results: Results) -> Figure | None:
    """Accuracy with its interval, a method a line; None where no method has one."""
    scored = [(m, a) for m, a in _accuracies(results) if a is not None]
    if not scored:
        return None

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for line, (method, score) in enumerate(scored):
            color = _METHOD_INK[method]
            axes.plot([score.low, score.high], [line, line], color=color, lw=2.2, zorder=2)
            for end in (score.low, score.high):
                axes.plot([end, end], [line - 0.13, line + 0.13], color=color, lw=1.6)
            axes.plot([score.value], [line], "o", color=color, ms=7.5, zorder=3)
            # Above the bar's middle, but never so near an edge that the text would be cut.
            place = min(max(score.value, 0.06), 0.94)
            axes.text(place, line - 0.26, percent(score.value), ha="center", va="bottom")
        _name_lines(axes, [TITLES[method] for method, _ in scored])
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
        axes.set_xlabel("accuracy, with its 95 % Wilson interval")
        axes.grid(axis="x")

    said = [f"{TITLES[m]} {percent(a.value)}, interval {interval(a)}" for m, a in scored]
    return _figure(
        "accuracy",
        "Accuracy on the held-out rows",
        f"Accuracy with 95 % Wilson intervals. {'; '.join(said)}.",
        draw,
        height=0.75 + 0.62 * len(scored),
    )


def fidelity(results: Results) -> Figure:
    """KL to the teacher and top-1 agreement, without training and with it."""
    kl, agreement = results.fidelity.kl_to_teacher, results.fidelity.top1_agreement

    def bars(pair: Pair, write: Callable[[float], str]) -> list[_Bar]:
        methods: tuple[tuple[RunMethodName, float], ...] = (
            ("zero_shot", pair.zero_shot),
            ("distilled", pair.distilled),
        )
        return [_Bar(TITLES[m], v, write(v), _METHOD_INK[m]) for m, v in methods]

    panels = {
        "KL to the teacher, nats a token (0 is identical)": bars(kl, number),
        "top-1 agreement with the teacher": bars(agreement, percent),
    }
    return _figure(
        "fidelity", "Fidelity to the teacher", _say(panels), _panels(panels), _height(panels)
    )


def query_cost(results: Results) -> Figure | None:
    """Prompt tokens and seconds a query, a method a line; None where no method was run."""
    methods = [(m, results.methods[m]) for m in TITLES if m in results.methods]
    if not methods:
        return None
    panels = {
        "prompt tokens a query": [
            _Bar(TITLES[m], r.prompt_tokens_mean, fixed(r.prompt_tokens_mean), _METHOD_INK[m])
            for m, r in methods
        ],
        "seconds a query": [
            _Bar(TITLES[m], r.seconds_per_query, number(r.seconds_per_query), _METHOD_INK[m])
            for m, r in methods
        ],
    }
    return _figure(
        "query-cost", "What a query costs", _say(panels), _panels(panels), _height(panels)
    )


def loss(results: Results) -> Figure | None:
    """The training loss over steps; None where none was recorded."""
    curve = results.training.loss
    if not curve:
        return None
    steps, values = [step for step, _ in curve], [value for _, value in curve]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        color = _METHOD_INK["distilled"]
        # A point a step is readable up to a few dozen; past that the line alone says more.
        axes.plot(steps, values, color=color, lw=1.8, marker="o" if len(curve) <= 40 else "", ms=3)
        axes.set_ylim(min(0.0, min(values)), max(values) * 1.08 or 1)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("loss a token")
        axes.locator_params(axis="x", integer=True, nbins=6)
        axes.locator_params(axis="y", nbins=5)
        axes.grid(axis="y")

    described = (
        f"Training loss from {number(values[0])} at step {count(steps[0])} "
        f"to {number(values[-1])} at step {count(steps[-1])}; lowest {number(min(values))}."
    )
    return _figure("loss", "Training loss", described, draw, height=2.6)


def phase_cost(results: Results) -> Figure | None:
    """Wall seconds and peak memory, a phase a line; None where no phase was measured."""
    phases = [(phase, results.phases[phase]) for phase in PHASES if phase in results.phases]
    if not phases:
        return None
    panels = {
        "wall seconds": [
            _Bar(phase, c.wall_seconds, fixed(c.wall_seconds), _PLAIN) for phase, c in phases
        ],
        "peak resident memory, MiB": [
            _Bar(phase, c.peak_rss_mb, fixed(c.peak_rss_mb, 0), _PLAIN) for phase, c in phases
        ],
    }
    return _figure(
        "phase-cost", "What each phase costs", _say(panels), _panels(panels), _height(panels)
    )


def _accuracies(results: Results) -> Iterator[tuple[RunMethodName, Proportion | None]]:
    for method in TITLES:
        if method in results.methods:
            yield method, results.methods[method].accuracy


def _say(panels: dict[str, list[_Bar]]) -> str:
    return " ".join(
        f"{title}: {'; '.join(f'{bar.label} {bar.text}' for bar in bars)}."
        for title, bars in panels.items()
    )


def _height(panels: dict[str, list[_Bar]]) -> float:
    return sum(0.42 + 0.27 * len(bars) for bars in panels.values())


def _panels(panels: dict[str, list[_Bar]]) -> Callable[[Canvas], None]:
    """Horizontal bars one panel above the other, each on its own scale and with its values."""

    def draw(canvas: Canvas) -> None:
        ratios = [len(bars) for bars in panels.values()]
        rows = canvas.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, (title, bars) in zip(rows, panels.items(), strict=True):
            lines = range(len(bars))
            longest = max((bar.value for bar in bars), default=0) or 1
            axes.barh(lines, [b.value for b in bars], height=0.62, color=[b.color for b in bars])
            for line, bar in zip(lines, bars, strict=True):
                axes.text(max(bar.value, 0) + longest * 0.015, line, bar.text, va="center_baseline")
            axes.set_title(title)
            _name_lines(axes, [bar.label for bar in bars])
            # The room on the right is for the value that stands at the end of the longest bar.
            axes.set_xlim(0, longest * 1.22)
            axes.set_xticks([])
            axes.spines["bottom"].set_visible(False)

    return draw


def _name_lines(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)


def _figure(
    name: str, title: str, description: str, draw: Callable[[Canvas], None], height: float
) -> Figure:
    return Sketch(name, title, description, lambda canvas, _: draw(canvas), height).inline()
