"""What a finished run prints: scores, costs, and where its files are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from instil.api import Run
    from instil.results.schema import MethodResult, Results
    from instil.results.scores import Proportion


def print_run(run: Run) -> None:
    """Prints the scores and costs of each method, and the paths of the report and the adapter."""
    print_results(run.results)
    typer.echo(f"report   {run.report()}")
    if run.results.training:
        typer.echo(f"adapter  {run.adapter}")


def print_results(results: Results) -> None:
    """Prints the scores and costs of each method, and the rules."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from instil.methods import METHODS

    several = len(results.methods[0].scores) > 1
    context = f", {results.context.description}" if results.context else ""
    table = Table(title=escape(f"{results.model}{context}"))
    for column in ("method", "set") if several else ("method",):
        table.add_column(column)
    for column in ("accuracy", "95 % interval", "prompt tokens", "seconds per query"):
        width = 13 if column == "95 % interval" else None  # keeps an interval on one line
        table.add_column(column, justify="right", min_width=width)
    for name, method in METHODS.items():
        result = results.result(name)
        for score in result.scores if result else ():
            assert result is not None
            accuracy, seconds = score.accuracy, result.seconds_per_query
            table.add_row(
                method.label,
                *([escape(score.name)] if several else []),
                f"{accuracy.value:.3f}" if accuracy else "–",
                f"{accuracy.low:.3f} – {accuracy.high:.3f}" if accuracy else "–",
                f"{result.prompt_tokens_mean:.0f}",
                "–" if seconds is None else f"{seconds:.3f}",
            )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if results.training:
        console.print(_summary(results), markup=False)
    for kind in ("rules", "metrics"):
        _print_shares(console, results, kind)


def _print_shares(console: Console, results: Results, kind: str) -> None:
    """Prints the shares of rules, or the means of metrics, on the first set."""
    from rich.markup import escape
    from rich.table import Table

    from instil.methods import METHODS

    shown: dict[str, dict[str, Proportion]] = {
        method.label: getattr(result.scores[0].written, kind)
        for name, method in METHODS.items()
        if (result := results.result(name)) and result.scores[0].written
    }
    names = list(dict.fromkeys(name for shares in shown.values() for name in shares))
    if not names or (kind == "metrics" and len(names) == 1):
        return
    table = Table()
    table.add_column(kind.removesuffix("s"))
    for column in (*(["rows"] if kind == "rules" else []), *shown):
        table.add_column(column, justify="right")
    for name in names:
        found = [shares.get(name) for shares in shown.values()]
        rows = [str(max(one.n for one in found if one))] if kind == "rules" else []
        values = [f"{one.value:.3f}" if one else "–" for one in found]
        table.add_row(escape(name), *rows, *values)
    console.print(table)


def _summary(results: Results) -> str:
    """Returns a line with recovery, KL to the teacher and drift, on the first set."""
    parts = [f"recovery {_recovery(results)}"]
    student = results.methods[0]
    before, after = _kl(results.result("zero_shot")), _kl(student)
    if after is not None:
        change = "" if before is None else f"{before:.3f} -> "
        parts.append(f"KL to the teacher {change}{after:.3f} nats per token")
    if student.scores[0].written and student.scores[0].written.leaks:
        share = student.scores[0].written.leaks.share.value
        parts += [f"leaks in {share:.1%} of the answers"] if share else []
    if student.scores[0].written and (judged := student.scores[0].written.judged):
        rate = judged.win_rate
        parts.append(
            f"win rate {rate.value:.3f} ({rate.low:.3f} – {rate.high:.3f}) by {judged.judge}"
        )
    if student.retention is not None:
        parts.append(f"{student.retention.same_answer.value:.0%} of general answers unchanged")
    if student.drift is not None:
        same = student.drift.same_top
        kept = "" if same is None else f" (same next token at {same:.0%} of other text)"
        parts.append(f"drift {student.drift.kl_to_base:.3f}{kept}")
    return "; ".join(parts)


def _recovery(results: Results) -> str:
    if results.recovery is None:
        return "undefined"
    interval = results.recovery_interval
    spread = f"{interval.low:.3f} – {interval.high:.3f}" if interval else "no interval"
    return f"{results.recovery:.3f} ({spread})"


def _kl(result: MethodResult | None) -> float | None:
    fidelity = result.scores[0].fidelity if result else None
    return fidelity.kl_to_teacher if fidelity else None
