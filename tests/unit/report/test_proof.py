"""What a page says of the answers of a run, and of savings beside a prefix cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.report.conftest import HOSTILE_ANSWER
from tests.unit.report.pages import Page
from tests.unit.report.runs import ROWS, build_predictions, build_results, write_run

from instil.report import Study, render
from instil.report.analysis import Analysis, analyse
from instil.report.browser import browse, differences
from instil.report.proof import lost_rules, proof
from instil.report.savings import savings
from instil.results.schema import EVALUATION, EvaluationRow, Message, Prediction, Results
from instil.results.scores import (
    Ends,
    Fidelity,
    KindRetention,
    LeakedPhrase,
    Leaks,
    OwnFidelity,
    PartFidelity,
    Retention,
    Written,
)
from instil.results.statistics import proportion
from instil.system.files import write_lines

COUNT = 20


def share(count: int, of: int = COUNT) -> Any:
    return proportion([n < count for n in range(of)])


def written(name: str) -> Written:
    """What a method wrote; the student breaks the rule `greeting` on half of the rows."""
    student = name == "distillation"
    parts = [
        PartFidelity(part=part, kl_to_teacher=kl, agreement=0.9, tokens=40)
        for part, kl in (("turn 1", 0.125), ("turn 2", 0.25))
    ]
    return Written(
        ends=Ends(tokens_mean=12.5 if student else 10.0, cut=share(2), repeats=share(1)),
        metrics={"exact": share(18), "chrf": share(19)},
        rules={"greeting": share(10 if student else 20), "short": share(5, 5)},
        same_answer=None if name == "in_context" else share(8),
        same_start=None if name == "in_context" else 0.75,
        on_own=None
        if name == "in_context"
        else OwnFidelity(kl_to_teacher=0.375, agreement=0.8, tokens=250),
        leaks=Leaks(
            share=share(3),
            phrases=[LeakedPhrase(text="the secret word is walnut", student=3, teacher=0)],
            verbatim=share(3),
            verbatim_teacher=share(1),
        )
        if student
        else None,
        with_context=0.5625 if student else None,
        by_turn=[] if name == "in_context" else parts,
    )


def kind(kl: float) -> KindRetention:
    return KindRetention(kl_to_base=kl, same_answer=share(5, 10), length=1.25, prompts=10)


def lines() -> list[Prediction]:
    made = []
    for line in build_predictions(COUNT, graded=False):
        student = line.method == "distillation"
        broken = student and line.row % 2 == 1
        text = f"{HOSTILE_ANSWER if line.row == 1 else ''}Hi there! Your lamp {'is' if student else 'was'} sent."
        made.append(
            line.model_copy(
                update={
                    "text": text,
                    "predicted": text,
                    "rules": {"greeting": not broken} | ({"short": True} if line.row < 5 else {}),
                    "ending": "repeats" if student and line.row == 3 else "finished",
                    "turn": 1 + line.row % 2,
                    "tokens": 30 if student and line.row == 7 else 10,
                    "kl": line.row / 10 if student else 0.0,
                }
            )
        )
    return made


def results(**changes: Any) -> Results:
    """A run without gold outputs, with all that answers are judged by."""
    found = build_results(lines(), **changes)
    methods = []
    for method in found.methods:
        scores = [
            score.model_copy(
                update={
                    "written": written(method.method),
                    "accuracy": None,
                    "fidelity": score.fidelity and Fidelity(kl_to_teacher=0.3, agreement=0.9),
                }
            )
            for score in method.scores
        ]
        kinds = {"sums": kind(0.0625), "small talk": kind(0.03125)}
        whole = Retention(**kind(0.046875).model_dump(), kinds=kinds)
        more: dict[str, Any] = {"scores": scores}
        if method.method == "distillation":
            more["retention"] = whole
        if method.method == "in_context":
            more["seconds_warm"] = 0.162
        methods.append(method.model_copy(update=more))
    return found.model_copy(update={"methods": methods})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [
        EvaluationRow(
            set=ROWS,
            row=row,
            input=line.input,
            output=None,
            messages=[
                Message(role="user", content=f"earlier <b>{row}</b>"),
                Message(role="assistant", content="Hi there! Yes."),
                Message(role="user", content=line.input),
            ]
            if row % 2
            else [Message(role="user", content=line.input)],
            turn=1 + row % 2,
        )
        for row, line in enumerate(lines()[:COUNT])
    ]
    write_lines(folder / EVALUATION, rows)
    return write_run(folder, results(), lines())


@pytest.fixture
def analysis(study: Study) -> Analysis:
    return analyse(study)


def test_rules_that_the_student_lost_have_their_worst_rows(analysis: Analysis) -> None:
    (lost,) = lost_rules(analysis, ROWS)
    assert (lost.name, lost.rows) == ("greeting", 10)
    assert [row.number for row in lost.worst] == [19, 17, 15]  # by KL
    assert "is sent" in lost.worst[0].student
    assert "was sent" in lost.worst[0].teacher


def test_all_that_is_known_of_the_answers_is_in_tables(analysis: Analysis) -> None:
    found = proof(analysis)
    assert found is not None
    (judged,) = found.sets
    tables = {title: table for title, _, table in judged.tables}
    assert list(tables) == [
        "Rules",
        "Metrics",
        "Length and ends",
        "Beside the teacher",
        "Fidelity by turn",
        "Leaks",
    ]
    rules = tables["Rules"]
    assert rules.columns == (
        "Applies to",
        "Zero-shot",
        "In-context",
        "Distillation",
        "p, student against in-context",
    )
    assert [row.name for row in rules.rows] == ["greeting", "short"]
    assert [cell.key for cell in rules.rows[0].cells[:4]] == [20, 1.0, 1.0, 0.5]
    assert rules.rows[0].cells[4].key == pytest.approx(2 * 0.5**10)
    beside = {row.name: row for row in tables["Beside the teacher"].rows}
    assert 0.375 in [cell.key for cell in beside["distillation"].cells]
    assert 0.5625 in [cell.key for cell in beside["distillation"].cells]
    assert [row.name for row in tables["Fidelity by turn"].rows] == ["turn 1", "turn 2"]
    assert [row.name for row in tables["Leaks"].rows] == ["“the secret word is walnut”"]
    assert found.retention is not None
    assert [row.name for row in found.retention[1].rows] == ["sums", "small talk"]


def test_the_page_tells_it(study: Study) -> None:
    words = Page(render(study)).words
    for text in (
        "What the answers are like",
        "The student lost the rule “greeting” on 10 rows",
        "15.0 % of the student’s answers hold a phrase",
        "10 prompts that have nothing to do",
        "Conversation before it",
        "breaks: greeting",
        "repeats itself",
        "Beside a prefix cache",
    ):
        assert text.replace(" %", "\N{NO-BREAK SPACE}%") in words or text in words, text
    assert "<b>" not in render(study).split("earlier ")[1][:10]


def test_rows_are_filtered_by_what_the_answers_are_like(analysis: Analysis) -> None:
    found = browse(analysis)
    counts = {one.name: one.rows for one in found.filters}
    assert counts["Student breaks a rule, in-context does not"] == 10
    assert counts["Student breaks: greeting"] == 10
    assert counts["Student without an end"] == 1
    assert counts["Student much longer or shorter"] == 1
    assert counts["Later turns"] == 10
    assert [row.number for row in found.rows[:3]] == [19, 17, 15]  # the most telling rows first
    assert found.rows[0].said == (("user", "earlier <b>19</b>"), ("assistant", "Hi there! Yes."))
    (student,) = [reply for reply in found.rows[0].replies if reply and reply.parts]
    assert [text for text, differs in student.parts if differs] == ["is"]
    assert "".join(text for text, _ in student.parts) == student.predicted
    assert student.notes == ("breaks: greeting",)


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [
        ("one two three", "one 2 three", [("one ", False), ("2", True), (" three", False)]),
        ("", "new", [("new", True)]),
        ("same", "same", [("same", False)]),
        ("gone", "", []),
    ],
)
def test_differences_are_told_word_by_word(
    before: str, after: str, parts: list[tuple[str, bool]]
) -> None:
    assert list(differences(before, after)) == parts


def test_savings_are_told_beside_a_warm_cache() -> None:
    found = savings(results())
    assert found is not None
    # In-context takes 0.162 s with a warm cache, the student 0.112 to 0.118 s.
    assert "0.162" in found.sentences[0]
    assert "paid back after" in found.sentences[1]
    assert found.table is not None
    spent = 41.3 + 12.8 + 188.0
    (never, once, four, twenty) = found.table.rows
    own = next(m.seconds_per_query for m in results().methods if m.method == "distillation")
    saved = 0.162 - (own or 0)
    assert never.cells[0].key == pytest.approx((30 * 100 * saved - spent) / 3600)
    assert never.cells[0].key == once.cells[0].key
    assert four.cells[0].key == pytest.approx((3000 * saved - 4 * spent) / 3600)
    assert (twenty.cells[0].key or 0) < 0 < (twenty.cells[3].key or 0)


def test_a_student_that_saves_no_time_beside_a_warm_cache_says_so() -> None:
    slow = results(seconds=(0.2, 0.112, 0.298))
    found = savings(slow)
    assert found is not None
    assert found.table is None
    assert "saves no time here" in found.sentences[1]


def test_prices_are_told_if_they_are_given() -> None:
    run = results()
    prices = {"input": 1.0, "cached_input": 0.1, "output": 2.0}
    recipe = run.recipe | {"evaluation": {"prices": prices}}
    found = savings(run.model_copy(update={"recipe": recipe}))
    assert found is not None
    # 79.6 and 8.4 prompt tokens; 10 and 12.5 tokens of an answer.
    whole, cached, own = 79.6 + 20, 8.4 + 71.2 * 0.1 + 20, 8.4 + 25
    for cost in (whole, cached, own):
        assert f"{cost / 1000:.4f}" in found.sentences[-1]
