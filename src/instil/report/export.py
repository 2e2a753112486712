"""Writes a report's tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from instil.methods import PHASES
from instil.report.analysis import Analysis
from instil.report.read import Cell, K
from instil.report.tables import Table, TableCell, all_tables, reuses
from instil.report.verdict import caveats, judge
from instil.results.schema import PhaseCost
from instil.results.scores import SetScore
from instil.results.statistics import predicted_shares

_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{NO-BREAK SPACE}": "~",
    "\N{MINUS SIGN}": r"$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{DAGGER}": r"\dag{}",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "…": r"\ldots{}",
}
_MEASURED_ELSEWHERE = (
    "\N{DAGGER} Another cell did the work of this phase, and the cost was measured there."
)


def latex(text: str) -> str:
    """Escapes a text for LaTeX."""
    return re.sub(r"\s*\n\s*", " ", "".join(_LATEX.get(sign, sign) for sign in text))


def markdown(text: str) -> str:
    """Escapes a text for a table cell in Markdown."""
    escaped = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text)
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"\s*\n\s*", " ", escaped)


def to_markdown(analysis: Analysis) -> str:
    """The headline of a study, and all its tables, as Markdown."""
    verdict, sets = judge(analysis)
    parts = [
        f"# {markdown(analysis.study.title)}",
        markdown(f"{verdict.headline} {verdict.rest}".rstrip()),
    ]
    parts += [f"**{markdown(v.set.name)}.** {markdown(' '.join(v.sentences))}" for v in sets]
    parts += [f"- {markdown(caveat)}" for caveat in caveats(analysis)]
    for table in all_tables(analysis):
        lines = [
            _line([table.first, *table.columns]),
            _line([":--", *["--:"] * len(table.columns)], escape=False),
            *map(_line, _lines(table)),
        ]
        parts += [f"## {markdown(table.caption)}", "\n".join(lines)]
    if reuses(analysis):
        parts.append(_MEASURED_ELSEWHERE)
    return "\n\n".join(parts) + "\n"


def to_latex(analysis: Analysis) -> str:
    """All tables of a study as LaTeX with booktabs, to include in a document."""
    parts = ["% needs \\usepackage{booktabs}; wide tables need a landscape page or \\small"]
    parts += [_tabular(table) for table in all_tables(analysis)]
    if reuses(analysis):
        parts.append(latex(_MEASURED_ELSEWHERE))
    return "\n\n".join(parts) + "\n"


def _tabular(table: Table) -> str:
    head = [table.first, *table.columns]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{latex(table.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(map(latex, head)) + r" \\",
            r"\midrule",
            *(" & ".join(map(latex, line)) + r" \\" for line in _lines(table)),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _lines(table: Table) -> list[list[str]]:
    rows = [*table.rows, *([table.total] if table.total else [])]
    return [[row.name, *map(_joined, row.cells)] for row in rows]


def _joined(cell: TableCell) -> str:
    return f"{cell.text} ({cell.note})" if cell.note else cell.text


def _line(cells: list[str], *, escape: bool = True) -> str:
    return f"| {' | '.join(markdown(cell) if escape else cell for cell in cells)} |"


def to_csv(analysis: Analysis) -> str:
    """All numbers and varied keys as CSV: one line per cell, set and `who` (method or teacher)."""
    rows = [row for cell in analysis.study.cells for row in _rows(cell, analysis.study.varied)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    written = io.StringIO()
    table = csv.DictWriter(written, columns or ["cell"], restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    return written.getvalue()


def _rows(cell: Cell, varied: list[str]) -> Iterator[dict[str, Any]]:
    settings = {key: _plain(_setting(cell, key)) for key in varied}
    about = {
        "cell": cell.name,
        "task": cell.task,
        "model": cell.model,
        "teacher_model": cell.teacher_model,
        "dtype": cell.dtype,
        "method": cell.method,
        "tuning": cell.tuning,
        "k": cell.k,
        "seed": cell.seed,
    }
    about |= {key: value for key, value in settings.items() if key not in about}
    costs = _costs(cell)
    for scored, scores in (("method", cell.scores), ("teacher", cell.teacher)):
        for score in scores:
            yield about | {"who": scored} | _score(score, labels=bool(cell.labels)) | costs


def _setting(cell: Cell, key: str) -> Any:
    if key == K:
        return cell.k
    if key in cell.varied:
        return cell.varied[key]
    found: Any = cell.recipe
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _score(score: SetScore, *, labels: bool) -> dict[str, Any]:
    accuracy = score.accuracy
    scored: dict[str, Any] = {
        "set": score.name,
        "domain": score.domain,
        "rows": score.rows,
        "accuracy": accuracy and accuracy.value,
        "accuracy_low": accuracy and accuracy.low,
        "accuracy_high": accuracy and accuracy.high,
    }
    closeness = {
        "kl_to_teacher": score.fidelity.kl_to_teacher if score.fidelity else None,
        "agreement": score.fidelity.agreement if score.fidelity else None,
    }
    if not labels:
        return scored | {"cross_entropy": score.cross_entropy} | closeness
    scored |= {
        "chance": score.chance,
        "majority": score.majority,
        "calibration_error": score.calibration_error,
        "verbalizer_mass": score.verbalizer_mass,
    }
    return (
        scored
        | closeness
        | {
            "predicted_shares": _plain(predicted_shares(score.confusion)),
            "confusion": _plain(score.confusion),
            "single_contexts": _plain([single.model_dump() for single in score.single_contexts]),
        }
    )


def _costs(cell: Cell) -> dict[str, Any]:
    training = cell.training
    found: dict[str, Any] = {
        "prompt_tokens_mean": cell.prompt_tokens_mean,
        "seconds_per_query": cell.seconds_per_query,
        "trained_rows": training.rows if training else None,
        "trained_steps": training.steps if training else None,
        "training_ended": training.ended if training else None,
        "truncated_completions": training.truncated_completions if training else None,
        "trainable_parameters": training.trainable_parameters if training else None,
        "trainable_share": training.trainable_share if training else None,
        "last_loss": training.loss[-1][1] if training and training.loss else None,
        "shipped_bytes": cell.shipped_bytes,
        "drift": cell.drift,
    }
    for phase in PHASES:
        cost = cell.phases.get(phase)
        for name in PhaseCost.model_fields:
            found[f"{phase}.{name}"] = getattr(cost, name) if cost else None
        found[f"{phase}.reused"] = phase in cell.reused
    return found


def _plain(value: Any) -> Any:
    """Returns a value of one cell. A spreadsheet must not read text as a formula."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
