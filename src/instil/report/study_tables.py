"""What the tables of a study hold, as values: the page, Markdown and LaTeX each write them down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean as mean

from instil.methods import PHASES, Phase
from instil.report.analysis import Analysis, SetFacts
from instil.report.checkpoints import checkpoints
from instil.report.groups import Group, SetSummary, Standing, mean_of
from instil.report.numerals import MISSING, NBSP, count, fixed, number, percent, points
from instil.report.study_verdict import between, p_text, signed
from instil.report.table import Cell, Row, Table
from instil.results.schema import PhaseCost

REUSED = "\N{DAGGER}"
_STANDINGS: dict[Standing, str] = {
    "above": "",
    "at": "at chance",
    "below": "below chance",
    "unclear": "not clear of chance",
}
_WRITTEN_STANDINGS: dict[Standing, str] = {
    "above": "",
    "at": "near 0",
    "below": "near 0",
    "unclear": "may be near 0",
}
MOST_LABELS = 6
"""Labels whose predicted shares still fit in a cell of a table."""


def summary(analysis: Analysis, facts: SetFacts) -> Table:
    """What every group scored on one set."""
    rows = []
    standings = _WRITTEN_STANDINGS if facts.written else _STANDINGS
    for found, score in analysis.scored(facts.name):
        own = (
            Cell(percent(score.mean), score.mean, standings[score.standing]),
            Cell(between(score), score.low, f"over {score.over}"),
            _maybe(score.deviation, points),
            Cell(f"{score.seeds} × {score.rows:,}", score.seeds * score.rows),
            _maybe(score.cross_entropy, lambda value: fixed(value, 3)),
            _maybe(score.calibration_error, lambda value: fixed(value, 3)),
            _maybe(score.verbalizer_mass, lambda value: fixed(value, 3)),
            _maybe(score.kl, lambda value: fixed(value, 3)),
            _maybe(score.agreement, percent),
            _maybe(_mean_drift(found), lambda value: fixed(value, 3)),
            _maybe(score.teacher, percent),
            _singles(score.single_contexts),
            Cell(_predicted(score), max(score.predicted.values(), default=0.0)),
        )
        rows.append(Row(found.label(), found.method, own))
    return _filled(
        caption=f"Scores on {facts.name}",
        first="Method",
        columns=(
            "Accuracy",
            "95 % interval",
            "SD over seeds",
            "Seeds × rows",
            "Cross-entropy, nats a token",
            "Calibration error",
            "Verbalizer mass",
            "KL to teacher, nats a token" if facts.written else "KL to teacher",
            "Agreement",
            "Drift, nats a token",
            "Teacher’s accuracy",
            "Single contexts, range",
            "Predicted labels",
        ),
        rows=tuple(rows),
    )


def pairs(analysis: Analysis, facts: SetFacts) -> Table:
    """Every two methods at the same settings, and controls, on the same rows of one set."""
    rows = [
        Row(
            f"{test.one.label()} against {test.other.label()}",
            test.one.method,
            (
                Cell(signed(test.difference), test.difference),
                Cell(count(test.only_one), test.only_one),
                Cell(count(test.only_other), test.only_other),
                Cell(count(test.rows), test.rows),
                Cell(count(test.seeds), test.seeds),
                Cell(_p(test.p), test.p),
                Cell(_p(test.p_holm), test.p_holm, "told apart" if test.separated else ""),
            ),
        )
        for test in analysis.tests_of(facts.name)
    ]
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
        rows=tuple(rows),
    )


def shipping(analysis: Analysis) -> Table:
    """What each group trains, ships and sends, and the sums over its phases."""
    rows = []
    for found in analysis.groups:
        cell = found.cells[0]
        training = cell.training
        costs = {phase: _mean_cost(found, phase) for phase in PHASES}
        spent = [cost for cost in costs.values() if cost]
        wall = sum(cost.wall_seconds for cost in spent)
        processor = sum(cost.cpu_user_seconds + cost.cpu_system_seconds for cost in spent)
        # Where there is an accelerator its memory is what counts.
        allocated = [cost.peak_allocated_mb for cost in spent if cost.peak_allocated_mb]
        peak = max(allocated or [cost.peak_rss_mb for cost in spent], default=0.0)
        train = costs["train"].wall_seconds if training and costs["train"] else None
        share = training.trainable_share if training else None
        tokens = mean([c.prompt_tokens_mean for c in found.cells])
        rows.append(
            Row(
                found.label(),
                found.method,
                (
                    Cell(fixed(tokens), tokens),
                    _maybe(training.trainable_parameters if training else None, _whole),
                    _maybe(share, lambda value: f"{100 * value:.3g}{NBSP}%"),
                    Cell(_bytes(cell.shipped_bytes), cell.shipped_bytes),
                    _maybe(train, fixed),
                    _maybe(wall or None, fixed),
                    _maybe(processor or None, fixed),
                    _maybe(peak or None, lambda value: fixed(value, 0)),
                ),
            )
        )
    return _filled(
        caption="What each setting costs, the mean over seeds",
        first="Method",
        columns=(
            "Prompt tokens a query",
            "Trainable parameters",
            "Share of model",
            "Shipped",
            "Training, s",
            "All phases, s",
            "All phases, CPU s",
            "Peak memory, MiB",
        ),
        rows=tuple(rows),
    )


def phases(analysis: Analysis) -> Table:
    """Every phase of every group."""
    rows = []
    for found in analysis.groups:
        for phase in PHASES:
            cost = _mean_cost(found, phase)
            if cost is None or not any((cost.wall_seconds, cost.tokens, cost.steps)):
                continue
            mark = REUSED if any(phase in cell.reused for cell in found.cells) else ""
            user, system = cost.cpu_user_seconds, cost.cpu_system_seconds
            rows.append(
                Row(
                    f"{found.label()}: {phase}{mark}",
                    found.method,
                    (
                        *(Cell(fixed(v), v) for v in (cost.wall_seconds, user, system)),
                        Cell(fixed(user + system), user + system),
                        *(Cell(fixed(v, 0), v) for v in (cost.peak_rss_mb, cost.mean_rss_mb)),
                        _maybe(cost.peak_allocated_mb, lambda value: fixed(value, 0)),
                        _maybe(cost.peak_reserved_mb, lambda value: fixed(value, 0)),
                        *(Cell(count(v), v) for v in (cost.tokens, cost.steps)),
                    ),
                )
            )
    return _filled(
        caption="What each phase costs, the mean over seeds",
        first="Method: phase",
        columns=(
            "Wall, s",
            "CPU user, s",
            "CPU system, s",
            "CPU, s",
            "Peak memory, MiB",
            "Mean memory, MiB",
            "Peak accelerator, MiB",
            "Reserved there, MiB",
            "Tokens",
            "Steps",
        ),
        rows=tuple(rows),
    )


def reuses(analysis: Analysis) -> bool:
    """Whether a phase's cost was measured in another cell."""
    return any(cell.reused for found in analysis.groups for cell in found.cells)


def _mean_drift(found: Group) -> float | None:
    drifts = [cell.drift for cell in found.cells if cell.drift is not None]
    return mean(drifts) if drifts else None


def _mean_cost(found: Group, phase: Phase) -> PhaseCost | None:
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


def _filled(caption: str, first: str, columns: tuple[str, ...], rows: tuple[Row, ...]) -> Table:
    """A table without the columns that hold nothing."""
    kept = [i for i in range(len(columns)) if any(row.cells[i].text != MISSING for row in rows)]
    return Table(
        caption=caption,
        first=first,
        columns=tuple(columns[i] for i in kept),
        rows=tuple(Row(r.name, r.method, tuple(r.cells[i] for i in kept)) for r in rows),
    )


def _singles(accuracies: Sequence[float]) -> Cell:
    if not accuracies:
        return Cell(MISSING, None)
    middle = mean(accuracies)
    ends = f"{100 * min(accuracies):.1f}\N{EN DASH}{100 * max(accuracies):.1f}{NBSP}%"
    return Cell(percent(middle), middle, ends)


def _predicted(score: SetSummary) -> str:
    shares = sorted(score.predicted.items(), key=lambda item: -item[1])
    said = [f"{label} {100 * share:.0f}{NBSP}%" for label, share in shares[:MOST_LABELS]]
    return ", ".join([*said, *(["…"] if len(shares) > MOST_LABELS else [])]) or MISSING


def _maybe(value: float | None, write: Callable[[float], str]) -> Cell:
    return Cell(MISSING, None) if value is None else Cell(write(value), value)


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
    """Every table of the study that has a line."""
    tables = [summary(analysis, facts) for facts in analysis.sets]
    tables += [pairs(analysis, facts) for facts in analysis.sets]
    tables += [checkpoints(analysis), shipping(analysis), phases(analysis)]
    return [table for table in tables if table.rows]
