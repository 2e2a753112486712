"""Two runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.finished import method_result, results, score
from typer.testing import CliRunner

from instil.cli import app
from instil.errors import ConfigError
from instil.report.page import compare_page, told
from instil.report.versus import Finished, versus
from instil.results.schema import (
    EVALUATION,
    PREDICTIONS,
    RESULTS,
    EvaluationRow,
    Message,
    Prediction,
)
from instil.system.files import write_lines

COUNT = 12


def finished(*, broken: int = 0, wrong: int = 0, kl: float = 0.1, first: int = 0) -> Finished:
    """A run; the student breaks a rule on some rows, and is wrong on others."""
    found = results(
        method_result("distillation", score(8, kl=kl), drift=0.01),
        method_result("zero_shot", score(2, kl=1.0)),
        method_result("in_context", score(9)),
    )
    rows, lines = [], []
    for row in range(COUNT):
        query = f"question {row + first}"
        rows.append(
            EvaluationRow(
                set="words",
                row=row,
                input=query,
                output="yes",
                messages=[Message(role="user", content=query)],
            )
        )
        lines.append(
            Prediction(
                set="words",
                row=row,
                method="distillation",
                input=query,
                expected="yes",
                predicted="yes",
                correct=row >= wrong,
                text=f"answer <{row}> {'!' if row < broken else ''}",
                rules={"quiet": row >= broken},
                tokens=5,
                ending="finished",
            )
        )
    return Finished(found, rows, lines)


def changes(one: Finished, other: Finished) -> dict[str, Any]:
    return {change.name: change for change in versus(one, other).changes}


def test_what_got_better_and_worse_is_found_row_by_row() -> None:
    found = versus(finished(broken=3), finished(wrong=2))
    assert (found.shared, found.same) == (COUNT, COUNT - 3)
    assert [(row.input, row.better, row.worse) for row in found.rows] == [
        ("question 0", ["quiet"], ["right"]),
        ("question 1", ["quiet"], ["right"]),
        ("question 2", ["quiet"], []),
    ]


def test_numbers_of_both_runs_are_tested_over_rows() -> None:
    found = changes(finished(kl=0.2), finished(broken=6, kl=0.1))
    rule = found["rule: quiet"]
    assert (rule.before, rule.after) == (1.0, 0.5)
    assert rule.p == pytest.approx(2 * 0.5**6)
    assert told(rule)[3:] == ("worse, p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.031", "bad")
    share = found["KL to the teacher, of zero-shot's"]
    assert (share.before, share.after, told(share)[3:]) == (0.2, 0.1, ("better", "good"))
    assert told(changes(finished(broken=1), finished())["rule: quiet"])[4] == ""  # not clear


def test_only_rows_that_both_answered_count() -> None:
    assert versus(finished(), finished(first=9)).shared == 3
    with pytest.raises(ConfigError, match=r"share no evaluation row.*instil check"):
        versus(finished(), finished(first=99))


def test_the_same_question_twice_counts_twice() -> None:
    one = finished()
    rows = [row.model_copy(update={"input": "same", "messages": []}) for row in one.rows]
    assert (
        versus(
            Finished(one.results, rows, one.predictions),
            Finished(one.results, rows, one.predictions),
        ).shared
        == COUNT
    )


def test_the_page_holds_the_rows_as_text() -> None:
    page = compare_page("old <new>", versus(finished(broken=3), finished()))
    assert "answer &lt;0&gt;" in page
    assert "old &lt;new&gt;" in page
    assert page.count("better: quiet") == 3


def write(folder: Path, found: Finished) -> Path:
    folder.mkdir()
    found.results.write(folder / RESULTS)
    write_lines(folder / EVALUATION, found.rows)
    write_lines(folder / PREDICTIONS, found.predictions)
    return folder


def test_the_command_prints_both_and_writes_the_page(tmp_path: Path) -> None:
    one = write(tmp_path / "old", finished(broken=8))
    other = write(tmp_path / "new", finished())
    page = tmp_path / "page.html"
    found = CliRunner().invoke(app, ["compare", str(one), str(other), "--html", str(page)])
    assert found.exit_code == 0, found.output
    assert "12 rows that both answered, 4 with the same answer" in found.output
    assert "better: quiet" in found.output
    assert "and 3 more rows that changed" in found.output
    assert "better: quiet" in page.read_text()
    (other / EVALUATION).unlink()
    found = CliRunner().invoke(app, ["compare", str(one), str(other)])
    assert found.exit_code == 2
    assert "has no evaluation.jsonl" in found.output
