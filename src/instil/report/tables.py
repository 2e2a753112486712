"""The tables of a report, which are then written as HTML, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean as mean

from instil.methods import PHASES, Phase
from instil.report.analysis import Analysis, SetFacts
from instil.report.curves import milestones
from instil.report.groups import Group, SetSummary, Standing, mean_of
from instil.report.numerals import (
    MISSING,
    NBSP,
    count,
    fixed,
    interval,
    number,
    p_text,
    percent,
    points,
    signed,
)
from instil.report.read import printable
from instil.results.schema import PhaseCost

REUSED = "\N{DAGGER}"
_STANDINGS: dict[Standing, str] = {
    "above": "",
    "at": "at chance",
    "below": "below chance",
    "unclear": "may be at chance",
}
_STANDINGS_OF_TEXT: dict[Standing, str] = {
    "above": "",
    "at": "near 0",
    "below": "near 0",
    "unclear": "may be near 0",
}
MOST_LABELS = 6
"""Maximum labels whose predicted shares are shown in a table cell."""


@dataclass(frozen=True)
class TableCell:
    """A value: its text, its number for sorting, and a small note."""

    text: str
    key: float | None = None
    note: str = ""


NOTHING = TableCell(MISSING)


@dataclass(frozen=True)
class TableRow:
    """A row of a table: its name, its method (empty if it has none) and its cells."""

    name: str
    method: str
    cells: tuple[TableCell, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: Title of the table.
        first: Header of the first column.
        columns: Headers of the other columns.
        rows: The rows.
        total: A last row that stays at the end when the others are sorted.
    """

    caption: str
    first: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    total: TableRow | None = None

    def filled(self) -> Table:
        """The table without its empty columns."""
        lines = [*self.rows, *([self.total] if self.total else [])]
        used = [
            i for i in range(len(self.columns)) if any(r.cells[i].text != MISSING for r in lines)
        ]
        narrowed = [replace(row, cells=tuple(row.cells[i] for i in used)) for row in lines]
        return replace(
            self,
            columns=tuple(self.columns[i] for i in used),
            rows=tuple(narrowed[: len(self.rows)]),
            total=narrowed[-1] if self.total else None,
        )


def summary(analysis: Analysis, facts: SetFacts) -> Table:
    """The scores of all groups on a set."""
    return Table(
        caption=f"Scores on {facts.name}",
        first="Method",
        columns=(
            "Accuracy",
            "95 % interval",
            "SD over seeds",
            "Seeds × rows",
            "Cross-entropy, nats per token",
            "Calibration error",
            "Verbalizer mass",
            "KL to teacher, nats per token" if facts.written else "KL to teacher",
            "Agreement",
            "Drift, nats per token",
            "Teacher’s accuracy",
            "Single contexts, range",
            "Predicted labels",
        ),
        rows=tuple(
            TableRow(found.label(), found.method, _scores(found, score))
            for found, score in analysis.answered(facts.name)
        ),
    ).filled()


def _scores(found: Group, score: SetSummary) -> tuple[TableCell, ...]:
    accuracy = (NOTHING,) * 3
    if own := score.accuracy:
        standings = _STANDINGS_OF_TEXT if score.written else _STANDINGS
        accuracy = (
            TableCell(percent(own.mean), own.mean, standings[own.standing]),
            TableCell(interval(own.low, own.high), own.low, f"over {own.over}"),
            _maybe(own.deviation, points),
        )
    return (
        *accuracy,
        TableCell(f"{score.seeds} × {score.rows:,}", score.seeds * score.rows),
        _maybe(score.cross_entropy, _fine),
        _maybe(score.calibration_error, _fine),
        _maybe(score.verbalizer_mass, _fine),
        _maybe(score.kl, _fine),
        _maybe(score.agreement, percent),
        _maybe(found.drift, _fine),
        # A teacher that answers with text has a row of its own.
        NOTHING if score.written else _maybe(score.teacher, percent),
        _singles(score.single_contexts),
        TableCell(_predicted(score), max(score.predicted.values(), default=0.0)),
    )


def answers(analysis: Analysis, facts: SetFacts) -> Table:
    """What the answers of all groups on a set are like; without rows for labels."""
    told = [(found, score) for found, score in analysis.answered(facts.name) if score.answer_tokens]
    rules = dict.fromkeys(rule for _, score in told for rule in score.rules)
    return Table(
        caption=f"Answers on {facts.name}",
        first="Method",
        columns=(
            *("Tokens, mean", "The teacher’s answer", "Leaks"),
            *(f"Rule: {printable(rule)}" for rule in rules),
        ),
        rows=tuple(
            TableRow(
                found.label(),
                found.method,
                (
                    _maybe(score.answer_tokens, fixed),
                    _maybe(score.same_answer, percent),
                    _maybe(score.leaks, percent),
                    *(_maybe(score.rules.get(rule), percent) for rule in rules),
                ),
            )
            for found, score in told
        ),
    ).filled()


def pairs(analysis: Analysis, facts: SetFacts) -> Table:
    """The paired tests on a set."""
    return Table(
        caption=f"Paired tests on {facts.name}",
        first="First against second",
        columns=(
            "Difference",
            "Only first right",
            "Only second right",
            "Rows",
            "Seeds",
            "p",
            "p (Holm)",
        ),
        rows=tuple(
            TableRow(
                f"{test.one.label()} against {test.other.label()}",
                test.one.method,
                (
                    TableCell(signed(test.difference), test.difference),
                    TableCell(count(test.only_one), test.only_one),
                    TableCell(count(test.only_other), test.only_other),
                    TableCell(count(test.rows), test.rows),
                    TableCell(count(test.seeds), test.seeds),
                    TableCell(_p(test.p), test.p),
                    TableCell(
                        _p(test.p_holm), test.p_holm, "significant" if test.separated else ""
                    ),
                ),
            )
            for test in analysis.tests_of(facts.name)
        ),
    )


def checkpoints(analysis: Analysis) -> Table:
    """The checkpoints of all groups, one row per checkpoint."""
    return Table(
        caption="Checkpoints on validation rows, mean over seeds",
        first="Method: step",
        columns=(
            "Accuracy",
            "Cross-entropy, nats per token",
            "KL to teacher, nats per token",
            "Agreement",
            "Seeds",
            "Seeds that select it",
        ),
        rows=tuple(
            TableRow(
                f"{group.label()}: step{NBSP}{milestone.step:,}",
                group.method,
                (
                    _maybe(milestone.accuracy.mean if milestone.accuracy else None, percent),
                    _maybe(milestone.cross_entropy.mean, _fine),
                    _maybe(milestone.kl.mean if milestone.kl else None, _fine),
                    _maybe(milestone.agreement, percent),
                    TableCell(count(milestone.seeds), milestone.seeds),
                    TableCell(count(milestone.kept), milestone.kept),
                ),
            )
            for group in analysis.groups
            for milestone in milestones(group)
        ),
    )


def shipping(analysis: Analysis) -> Table:
    """Prompt tokens, trained parameters and weights of each group, and the sums over its phases."""
    return Table(
        caption="Cost of each setting, mean over seeds",
        first="Method",
        columns=(
            "Prompt tokens per query",
            "Seconds per query",
            "Trainable parameters",
            "Share of model",
            "Completions cut",
            "Shipped",
            "Training, s",
            "All phases, s",
            "All phases, CPU s",
            "Peak memory, MiB",
        ),
        rows=tuple(
            TableRow(found.label(), found.method, _costs(found)) for found in analysis.groups
        ),
    ).filled()


def _costs(found: Group) -> tuple[TableCell, ...]:
    cell = found.cells[0]
    training = cell.training
    costs = {phase: cost for phase in PHASES if (cost := mean_cost(found, phase))}
    wall = sum(cost.wall_seconds for cost in costs.values())
    processor = sum(cost.cpu_user_seconds + cost.cpu_system_seconds for cost in costs.values())
    # With an accelerator, show its memory instead of the resident memory.
    allocated = [cost.peak_allocated_mb for cost in costs.values() if cost.peak_allocated_mb]
    peak = max(allocated or [cost.peak_rss_mb for cost in costs.values()], default=0.0)
    train = costs["train"].wall_seconds if training and "train" in costs else None
    return (
        TableCell(fixed(found.prompt_tokens), found.prompt_tokens),
        _maybe(found.seconds_per_query, number),
        _maybe(training.trainable_parameters if training else None, _whole),
        _maybe(
            training.trainable_share if training else None,
            lambda value: f"{100 * value:.3g}{NBSP}%",
        ),
        _maybe(found.truncated or None, _whole),
        TableCell(_bytes(cell.shipped_bytes), cell.shipped_bytes),
        _maybe(train, fixed),
        _maybe(wall or None, fixed),
        _maybe(processor or None, fixed),
        _maybe(peak or None, lambda value: fixed(value, 0)),
    )


def phases(analysis: Analysis) -> Table:
    """All phases of all groups; for a single group also their sum."""
    measured = [found for found in analysis.groups if any(cell.phases for cell in found.cells)]
    rows, costs = [], []
    for found in measured:
        for phase in PHASES:
            cost = mean_cost(found, phase)
            if cost is None or not any((cost.wall_seconds, cost.tokens, cost.steps)):
                continue
            mark = REUSED if any(phase in cell.reused for cell in found.cells) else ""
            name = f"{phase}{mark}"
            costs.append(cost)
            cells = (*_phase(cost), TableCell(count(cost.steps), cost.steps))
            if len(measured) == 1:
                rows.append(TableRow(name, "", cells))
            else:
                rows.append(TableRow(f"{found.label()}: {name}", found.method, cells))
    total = None
    if len(measured) == 1 and costs:
        # Steps of different phases cannot be added.
        total = TableRow("all phases", "", (*_phase(_sum(costs)), NOTHING))
    return Table(
        caption="Cost of each phase, mean over seeds",
        first="Phase" if len(measured) == 1 else "Method: phase",
        columns=(
            "Wall, s",
            "CPU user, s",
            "CPU system, s",
            "CPU, s",
            "Peak memory, MiB",
            "Mean memory, MiB",
            "Peak accelerator, MiB",
            "Reserved accelerator, MiB",
            "Tokens",
            "Steps",
        ),
        rows=tuple(rows),
        total=total,
    ).filled()


def _phase(cost: PhaseCost) -> tuple[TableCell, ...]:
    user, system = cost.cpu_user_seconds, cost.cpu_system_seconds
    return (
        *(TableCell(fixed(v), v) for v in (cost.wall_seconds, user, system, user + system)),
        *(TableCell(fixed(v, 0), v) for v in (cost.peak_rss_mb, cost.mean_rss_mb)),
        _maybe(cost.peak_allocated_mb, lambda value: fixed(value, 0)),
        _maybe(cost.peak_reserved_mb, lambda value: fixed(value, 0)),
        TableCell(count(cost.tokens), cost.tokens),
    )


def reuses(analysis: Analysis) -> bool:
    """Whether a phase's cost was measured in another cell."""
    return any(cell.reused for found in analysis.groups for cell in found.cells)


def mean_cost(found: Group, phase: Phase) -> PhaseCost | None:
    """The cost of a group's phase, mean over seeds; None if it has no such phase."""
    costs = [cell.phases[phase] for cell in found.cells if phase in cell.phases]
    if not costs:
        return None
    return PhaseCost(
        wall_seconds=mean([cost.wall_seconds for cost in costs]),
        cpu_user_seconds=mean([cost.cpu_user_seconds for cost in costs]),
        cpu_system_seconds=mean([cost.cpu_system_seconds for cost in costs]),
        peak_rss_mb=mean([cost.peak_rss_mb for cost in costs]),
        mean_rss_mb=mean([cost.mean_rss_mb for cost in costs]),
        peak_allocated_mb=mean_of(cost.peak_allocated_mb for cost in costs),
        peak_reserved_mb=mean_of(cost.peak_reserved_mb for cost in costs),
        tokens=round(mean([cost.tokens for cost in costs])),
        steps=round(mean([cost.steps for cost in costs])),
    )


def _sum(costs: Sequence[PhaseCost]) -> PhaseCost:
    """The sum of all phases; mean memory is weighted by the duration of the phase."""
    wall = sum(cost.wall_seconds for cost in costs)
    memory = sum(cost.mean_rss_mb * cost.wall_seconds for cost in costs)
    return PhaseCost(
        wall_seconds=wall,
        cpu_user_seconds=sum(cost.cpu_user_seconds for cost in costs),
        cpu_system_seconds=sum(cost.cpu_system_seconds for cost in costs),
        peak_rss_mb=max(cost.peak_rss_mb for cost in costs),
        mean_rss_mb=memory / wall if wall else 0,
        peak_allocated_mb=max(
            (c.peak_allocated_mb for c in costs if c.peak_allocated_mb), default=None
        ),
        peak_reserved_mb=max(
            (c.peak_reserved_mb for c in costs if c.peak_reserved_mb), default=None
        ),
        tokens=sum(cost.tokens for cost in costs),
        steps=0,
    )


def _singles(accuracies: Sequence[float]) -> TableCell:
    if not accuracies:
        return NOTHING
    middle = mean(accuracies)
    return TableCell(percent(middle), middle, interval(min(accuracies), max(accuracies)))


def _predicted(score: SetSummary) -> str:
    shares = sorted(score.predicted.items(), key=lambda item: -item[1])
    named = [f"{label} {100 * share:.0f}{NBSP}%" for label, share in shares[:MOST_LABELS]]
    return ", ".join([*named, *(["…"] if len(shares) > MOST_LABELS else [])]) or MISSING


def _maybe(value: float | None, write: Callable[[float], str]) -> TableCell:
    return NOTHING if value is None else TableCell(write(value), value)


def _fine(value: float) -> str:
    return fixed(value, 3)


def _whole(value: float) -> str:
    return count(int(value))


def _p(p: float) -> str:
    return p_text(p).removeprefix(f"p{NBSP}").removeprefix(f"={NBSP}")


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{number(size / scale)}{NBSP}{unit}"
    return f"{size}{NBSP}B" if size else "0"


def all_tables(analysis: Analysis) -> Sequence[Table]:
    """All tables of the study that have rows."""
    tables = [summary(analysis, facts) for facts in analysis.sets]
    tables += [answers(analysis, facts) for facts in analysis.sets if not analysis.study.single]
    tables += [pairs(analysis, facts) for facts in analysis.sets]
    tables += [checkpoints(analysis), shipping(analysis), phases(analysis)]
    return [table for table in tables if table.rows]
