"""Chooses the figures of a report; a figure is left out if there are no data for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean as mean
from statistics import mode
from typing import Literal

from instil.methods import PHASES
from instil.report.analysis import Analysis, SetFacts
from instil.report.bars import Bars, bar_chart
from instil.report.charts import (
    Dot,
    Level,
    Line,
    Panel,
    Pen,
    Point,
    Unit,
    dot_chart,
    line_chart,
    reliability_chart,
)
from instil.report.curves import loss_curves, milestones, training_curves
from instil.report.drawing import Sketch
from instil.report.groups import TITLES, Group, Value, name_of, worded
from instil.report.pens import TUNING_PENS, pen
from instil.report.read import K
from instil.report.tables import mean_cost
from instil.results.statistics import reliability

AXES = {
    K: "demonstrations k",
    "objective.alpha": "\N{GREEK SMALL LETTER ALPHA} of the objective",
}
MOST_CURVES = 8
"""Maximum lines per panel of training curves; with more groups, only the best are drawn."""
MOST_DOTS = 16
"""Maximum settings per chart; with more, only the best of each method and tuning are drawn."""


def sketches(analysis: Analysis) -> list[Sketch]:
    """All figures of the study, in the order of the page."""
    keys = dict.fromkeys(key for g in analysis.groups for key in g.settings)
    swept = [key for key in keys if _numeric(analysis, key)]
    found: list[Sketch] = []
    models: list[Value | None] = [*analysis.values("model")]
    for model in models or [None]:
        groups = [g for g in analysis.groups if model in (None, g.settings.get("model"))]
        view = _View(analysis, groups, model, swept)
        if K not in swept:
            found += view.bars()
            found += view.dots()
        for key in sorted(swept, key=lambda key: key != K):
            found += view.accuracy_against(key)
            if key == K:
                found += view.cost_against(key)
        found += view.fidelity()
        found += view.query_cost()
        found += view.curves()
        found += view.tunings(K if K in swept else None)
        found += view.phase_cost()
    return _named_apart([*found, *_reliability(analysis)])


def _named_apart(found: list[Sketch]) -> list[Sketch]:
    """Makes names unique: set names may differ only in characters that file names cannot have."""
    seen: Counter[str] = Counter()
    apart = []
    for sketch in found:
        seen[sketch.name] += 1
        number = seen[sketch.name]
        apart.append(replace(sketch, name=f"{sketch.name}-{number}") if number > 1 else sketch)
    return apart


class _View:
    """The groups of one model, and the figures about them."""

    def __init__(
        self, analysis: Analysis, groups: list[Group], model: Value | None, swept: Sequence[str]
    ) -> None:
        self.analysis, self.groups, self.model, self.swept = analysis, groups, model, swept
        self.tuned = len({g.tuning for g in groups if g.tuning}) > 1

    def sketch_name(self, *parts: str) -> str:
        named = "-".join([*parts, *([str(self.model)] if self.model is not None else [])])
        return re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")

    def title(self, text: str, held: Mapping[str, Value]) -> str:
        notes = [worded(key, value) for key, value in held.items()]
        if self.model is not None:
            notes.insert(0, str(self.model))
        return f"{text} ({', '.join(notes)})" if notes else text

    def pen(self, group: Group) -> Pen:
        return pen(group, tuned=self.tuned, along_k=K in self.swept)

    def held(self, axis: str, groups: Sequence[Group]) -> dict[str, Value]:
        """The most frequent value of each other varied setting, which a figure holds fixed."""
        excluded = {"method", "tuning", "model", "task", axis}
        found = {}
        for key in dict.fromkeys(key for g in groups for key in g.settings):
            values = [g.settings[key] for g in groups if key in g.settings]
            along = [g.settings[key] for g in groups if {key, axis} <= set(g.settings)]
            if key not in excluded and len(set(values)) > 1:
                found[key] = mode(along or values)
        return found

    def at(
        self, axis: str, groups: Sequence[Group] | None = None
    ) -> tuple[list[Group], dict[str, Value]]:
        groups = self.groups if groups is None else groups
        held = self.held(axis, groups)
        return [g for g in groups if set(_unlike(g, held)) <= _replaced(g)], held

    def is_log(self, key: str) -> bool:
        return key.endswith("learning_rate") or _log(self.analysis.values(key))

    def accuracy_against(self, key: str) -> Iterator[Sketch]:
        groups, held = self.at(key)
        log = self.is_log(key)
        limits = _limits(groups, self.analysis.sets)
        for facts in self.analysis.sets:
            lines = self.lines(groups, key, _accuracy(facts.name))
            if not any(len(line.points) > 1 for line in lines):
                continue
            panel = Panel("accuracy", "share", lines, _levels(facts), limits)
            yield line_chart(
                self.sketch_name("accuracy", key, facts.name),
                self.title(
                    f"{facts.name}, {_domain(facts)}: accuracy against {name_of(key)}", held
                ),
                AXES.get(key, name_of(key)),
                [panel],
                log=log,
            )

    def cost_against(self, key: str) -> Iterator[Sketch]:
        groups, held = self.at(key)
        panels = [
            Panel("peak resident memory, MiB", "quantity", self.lines(groups, key, _memory)),
            Panel("training time, s", "quantity", self.lines(groups, key, _seconds)),
        ]
        panels = [p for p in panels if any(len(line.points) > 1 for line in p.lines)]
        if panels:
            yield line_chart(
                self.sketch_name("cost", key),
                self.title(f"Cost against {name_of(key)}", held),
                AXES.get(key, name_of(key)),
                panels,
                log=self.is_log(key),
            )

    def lines(
        self, groups: Sequence[Group], axis: str, measure: Callable[[Group], Point | None]
    ) -> tuple[Line, ...]:
        found: dict[str, Line] = {}
        held = self.held(axis, self.groups)
        for group in groups:
            point = measure(group)
            if point is None:
                continue
            alike = held.keys() - _unlike(group, held)
            label, flat = group.label(without={axis, "model", *alike}), axis not in group.settings
            place = 0.0 if flat else float(group.settings[axis])
            line = found.get(label) or Line(label, self.pen(group), (), flat)
            points = sorted([*line.points, point._replace(x=place)])
            found[label] = Line(label, line.pen, tuple(points), flat)
        return tuple(
            line if not line.flat else Line(line.label, line.pen, line.points[:1], flat=True)
            for line in found.values()
        )

    def most(self, groups: list[Group], limit: int) -> list[Group]:
        """All groups, or only the best of each kind if there are more than `limit`."""
        best = {id(g) for g in self.analysis.contenders()}
        return groups if len(groups) <= limit else [g for g in groups if id(g) in best]

    def bars(self) -> Iterator[Sketch]:
        """Accuracy of free-text answers on all sets in one chart, which needs no chance level."""
        sets = [facts for facts in self.analysis.sets if facts.written and facts.graded]
        measures = [_accuracy(facts.name) for facts in sets]
        found = [
            Bars(g.label(without={"model"}), self.pen(g), tuple(m(g) for m in measures))
            for g in sorted(self.most([g for g in self.groups if g.written], MOST_DOTS), key=_place)
        ]
        if sets and found:
            title = self.title("Accuracy of every method", {})
            names = [f"{facts.name}, {_domain(facts)}" for facts in sets]
            yield bar_chart(self.sketch_name("accuracy"), title, names, found)

    def fidelity(self) -> Iterator[Sketch]:
        """KL and agreement on sets without gold outputs."""
        for name in (facts.name for facts in self.analysis.sets if not facts.graded):
            groups = self.most([g for g in self.groups if name in g.scores], MOST_DOTS)
            kl = self.column(groups, _fidelity(name, "kl"))
            agreement = self.column(groups, _fidelity(name, "agreement"))
            if kl:
                yield dot_chart(
                    self.sketch_name("fidelity", name),
                    self.title(f"{name}: fidelity to the teacher", {}),
                    [
                        ("KL to the teacher, nats per token (0 is identical)", "quantity", kl),
                        ("top-1 agreement with the teacher", "share", agreement),
                    ],
                )

    def query_cost(self) -> Iterator[Sketch]:
        """Prompt tokens and seconds per query of the best group of each method."""
        best = {id(g) for g in self.analysis.champions()}
        timed = [g for g in self.groups if id(g) in best and g.seconds_per_query is not None]
        if len(timed) > 1:
            tokens = self.column(timed, lambda g: _point(g.prompt_tokens))
            seconds = self.column(timed, lambda g: _point(g.seconds_per_query))
            yield dot_chart(
                self.sketch_name("query-cost"),
                self.title("Cost of a query", {}),
                [
                    ("prompt tokens per query", "quantity", tokens),
                    ("seconds per query", "quantity", seconds),
                ],
            )

    def phase_cost(self) -> Iterator[Sketch]:
        """Time and memory of each phase, if only one group (a student) has phases."""
        groups = [g for g in self.groups if any(cell.phases for cell in g.cells)]
        if len(groups) == 1 and groups[0].cells[0].training:
            costs = {p: cost for p in PHASES if (cost := mean_cost(groups[0], p))}
            plain = Pen("plain")
            seconds = [Dot(p, plain, Point(0, cost.wall_seconds)) for p, cost in costs.items()]
            memory = [Dot(p, plain, Point(0, cost.peak_rss_mb)) for p, cost in costs.items()]
            yield dot_chart(
                self.sketch_name("phase-cost"),
                self.title("Cost of each phase", {}),
                [
                    ("wall seconds", "quantity", seconds),
                    ("peak resident memory, MiB", "quantity", memory),
                ],
            )

    def curves(self) -> Iterator[Sketch]:
        """Loss over training, and accuracy, KL and cross-entropy if there are checkpoints."""
        trained = [g for g in self.groups if g.cells[0].training]
        for draw, groups in (
            (loss_curves, trained),
            (training_curves, [g for g in trained if milestones(g)]),
        ):
            yield from draw(
                self.most(groups, MOST_CURVES),
                pen=self.pen,
                name=self.sketch_name,
                title=lambda text: self.title(text, {}),
            )

    def dots(self) -> Iterator[Sketch]:
        groups = self.most(self.groups, MOST_DOTS)
        limits = _limits(groups, self.analysis.sets)
        for facts in self.analysis.sets:
            if facts.written or not facts.graded:
                continue
            dots = self.column(groups, _accuracy(facts.name))
            if dots:
                yield dot_chart(
                    self.sketch_name("accuracy", facts.name),
                    self.title(f"{facts.name}, {_domain(facts)}: accuracy", {}),
                    [("accuracy with 95 % interval", "share", dots)],
                    levels=_levels(facts),
                    limits=limits,
                )

    def column(
        self, groups: Iterable[Group], measure: Callable[[Group], Point | None]
    ) -> list[Dot]:
        return [
            Dot(g.label(without={"model"}), self.pen(g), point)
            for g in groups
            if (point := measure(g)) is not None
        ]

    def tunings(self, axis: str | None) -> Iterator[Sketch]:
        """Accuracy, memory and time of the tunings, for each method that has several."""
        for method in TITLES:
            own = [g for g in self.groups if g.method == method and "tuning" in g.settings]
            if len({g.tuning for g in own}) < 2:
                continue
            over = axis if axis and any(axis in g.settings for g in own) else None
            own, held = self.at(over or "", own)
            name = self.sketch_name("tunings", method)
            title = self.title(f"Tunings of {own[0].title.lower()}", held)
            measures = [
                *((f"accuracy on {f.name}", _accuracy(f.name), f) for f in self.analysis.sets[:2]),
                ("peak resident memory, MiB", _memory, None),
                ("training time, s", _seconds, None),
            ]
            if over is None:
                yield self.tuning_dots(name, title, own, measures)
            else:
                yield self.tuning_lines(name, title, own, over, measures)

    def tuning_dots(
        self, name: str, title: str, own: list[Group], measures: Sequence[_Measure]
    ) -> Sketch:
        columns = [
            (heading, _unit(facts), dots)
            for heading, measure, facts in measures
            if (dots := _as_tunings(own, measure))
        ]
        return dot_chart(name, title, columns)

    def tuning_lines(
        self, name: str, title: str, own: list[Group], axis: str, measures: Sequence[_Measure]
    ) -> Sketch:
        limits = _limits(own, self.analysis.sets)
        panels = []
        for heading, measure, facts in measures:
            lines = tuple(
                Line(_tuning(line.label), TUNING_PENS.get(t, line.pen), line.points)
                for t in dict.fromkeys(g.tuning or "" for g in own)
                for line in self.lines([g for g in own if g.tuning == t], axis, measure)
            )
            levels = _levels(facts) if facts else ()
            panels.append(Panel(heading, _unit(facts), lines, levels, limits if facts else None))
        return line_chart(name, title, AXES.get(axis, name_of(axis)), panels, log=self.is_log(axis))


_Measure = tuple[str, Callable[[Group], Point | None], SetFacts | None]


def _unit(facts: SetFacts | None) -> Unit:
    return "share" if facts else "quantity"


def _as_tunings(own: list[Group], measure: Callable[[Group], Point | None]) -> list[Dot]:
    return [
        Dot(_tuning(g.label()), TUNING_PENS.get(g.tuning or "", Pen("plain")), point)
        for g in own
        if (point := measure(g)) is not None
    ]


def _tuning(label: str) -> str:
    """A group's label without the method, because all groups of the figure have the same."""
    return label.split(", ", 1)[-1]


def _accuracy(name: str) -> Callable[[Group], Point | None]:
    def measure(group: Group) -> Point | None:
        score = group.scores.get(name)
        found = score.accuracy if score else None
        return Point(0, found.mean, found.low, found.high) if found else None

    return measure


def _fidelity(name: str, quantity: Literal["kl", "agreement"]) -> Callable[[Group], Point | None]:
    return lambda group: _point(getattr(group.scores[name], quantity))


def _point(value: float | None) -> Point | None:
    return None if value is None else Point(0, value)


def _memory(group: Group) -> Point | None:
    """Peak memory of training, or of evaluation without training; not of the teacher's phases."""
    peaks = []
    for cell in group.cells:
        cost = cell.phases.get("train") or cell.phases.get("evaluate")
        if cost is not None:
            peaks.append(cost.peak_allocated_mb or cost.peak_rss_mb)
    return Point(0, mean(peaks)) if peaks else None


def _seconds(group: Group) -> Point | None:
    if group.cells[0].training is None:
        return None
    spent = [cell.phases["train"].wall_seconds for cell in group.cells if "train" in cell.phases]
    return Point(0, mean(spent)) if spent else None


def _place(group: Group) -> tuple[int, bool]:
    """Sort key that puts a control directly after its method."""
    return list(TITLES).index(group.method), group.control is not None


def _levels(facts: SetFacts) -> tuple[Level, ...]:
    if facts.written:
        return ()
    if abs(facts.chance - facts.majority) < 0.005:
        return (Level("chance, majority label", facts.chance, ":"),)
    return Level("chance", facts.chance, ":"), Level("majority label", facts.majority, "-.")


def _limits(groups: Iterable[Group], sets: Sequence[SetFacts]) -> tuple[float, float]:
    """One scale for all sets, so that their figures can be compared."""
    found = [s.accuracy for g in groups for s in g.scores.values() if s.accuracy]
    ends = [end for accuracy in found for end in (accuracy.low, accuracy.high)]
    ends += [v for facts in sets if not facts.written for v in (facts.chance, facts.majority)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    return max(0.0, low - 0.04), min(1.02, high + 0.04)


def _domain(facts: SetFacts) -> str:
    return f"{'in' if facts.domain == 'in' else 'out of'} domain"


def _numeric(analysis: Analysis, key: str) -> bool:
    values = analysis.values(key)
    plain = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    # k = 0 is a control here, so together with only one other k it makes no axis.
    return len([v for v in values if v or key != K]) > 1 and plain


def _unlike(group: Group, held: Mapping[str, Value]) -> list[str]:
    """The settings in which a group differs from the values that a figure holds fixed."""
    return [key for key, value in held.items() if group.settings.get(key, value) != value]


def _replaced(group: Group) -> set[str]:
    """Settings in which a group may differ: the plain prompt is compared with all teachers."""
    return {k for k in group.settings if k.startswith("teacher.")} if group.plain_prompt else set()


def _log(values: Sequence[Value]) -> bool:
    """Whether a logarithmic axis fits the values."""
    ordered = [float(value) for value in values]
    if len(ordered) < 2 or ordered[0] <= 0:
        return False
    return ordered[-1] / ordered[0] >= 8 and all(b / a >= 1.5 for a, b in pairwise(ordered))


def _reliability(analysis: Analysis) -> Iterator[Sketch]:
    for facts in analysis.sets:
        lines = []
        for group in analysis.champions():
            marks = [
                (mark.confidence, mark.right)
                for cell in group.cells
                for mark in analysis.marks.get(cell.name, {}).get(facts.name, {}).values()
                if mark.confidence is not None and mark.right is not None
            ]
            points = tuple(Point(sure, right) for sure, right, _ in reliability(marks))
            if points:
                lines.append(Line(group.label(), pen(group), points))
        if lines:
            name = re.sub(r"[^a-z0-9]+", "-", f"reliability-{facts.name}".lower()).strip("-")
            yield reliability_chart(name, f"{facts.name}: calibration", lines)
