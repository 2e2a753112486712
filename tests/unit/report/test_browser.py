"""The rows that a page shows in full."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.report.conftest import HOSTILE_ANSWER
from tests.unit.report.pages import Page
from tests.unit.report.runs import ROWS, build_predictions, build_results, write_run
from tests.unit.report.studies import LABELS, build_cell, predict, write_study_folder
from tests.unit.report.written_studies import PLANS, build

from instil.report import browser as module
from instil.report import read_study, render
from instil.report.analysis import Analysis, analyse
from instil.report.browser import LONGEST_TEXT, ROWS_PER_SET, Browser, browse
from instil.results.schema import Prediction


def of_a_run(folder: Path, lines: list[Prediction]) -> Browser:
    return browse(analyse(write_run(folder / "run", build_results(lines), lines)))


def filters(found: Browser) -> list[tuple[str, ...]]:
    return [tuple(key for key in row.filters if not key.startswith("set-")) for row in found.rows]


def test_rows_of_a_run_carry_their_filters(tmp_path: Path) -> None:
    lines = build_predictions(rows=3)
    wrong = {"predicted": "leafs", "text": "leafs", "correct": False}
    lines = [
        line.model_copy(update=wrong | {"predicted": f"leafs {line.method}"})
        if line.row == 2
        else line
        for line in lines
    ]
    found = of_a_run(tmp_path, lines)
    # Row 1 is lost in distillation; in row 2 every method is wrong, each in its own words.
    assert filters(found) == [("disagree",), ("disagree", "wrong", "lost"), ("wrong",)]
    assert [(one.name, one.rows) for one in found.filters] == [
        ("All rows", 3),
        ("Methods disagree", 2),
        ("Student wrong", 2),
        ("Student wrong, in-context right", 1),
    ]


def test_without_gold_outputs_methods_disagree_where_answers_differ(tmp_path: Path) -> None:
    lines = [
        line.model_copy(update={"predicted": "apples " if line.method == "zero_shot" else "apples"})
        if line.row == 0
        else line
        for line in build_predictions(rows=2, graded=False)
    ]
    found = of_a_run(tmp_path, lines)
    assert filters(found) == [(), ("disagree",)]
    assert "wrong" not in [one.key for one in found.filters]
    assert "their outputs differ" in Page(render(read_study([tmp_path / "run"]))).words


def test_a_whole_text_is_there_where_it_says_more(tmp_path: Path) -> None:
    lines = build_predictions(rows=1)
    more = [line.model_copy(update={"text": f" {line.predicted} \n"}) for line in lines]
    assert {reply.text for reply in of_a_run(tmp_path, more).rows[0].replies if reply} == {None}
    more = [line.model_copy(update={"text": f"So: {line.predicted}"}) for line in lines]
    said = [reply.text for reply in of_a_run(tmp_path, more).rows[0].replies if reply]
    assert said[1:] == ["So: apples", "So: apples"]


def test_rows_of_a_study_are_limited_and_long_texts_cut(tmp_path: Path) -> None:
    texts = {0: "x" * (LONGEST_TEXT + 5)}
    cells = []
    for method, right in (("zero_shot", False), ("in_context", True)):
        lines = predict([right] * 150, LABELS, "mnli_matched", texts)
        cells.append((build_cell(method, lines), lines))
    study = read_study([write_study_folder(tmp_path / "s", cells, varied=["method"])])
    found = browse(analyse(study))
    assert found.cut == [("mnli_matched", ROWS_PER_SET, 150)]
    assert len(found.rows) == ROWS_PER_SET
    assert found.rows[0].input.endswith("x… (5 more characters)")
    assert "100 of 150 on mnli_matched" in Page(render(study)).words


def test_rows_of_a_run_are_limited_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_OF_A_RUN", 5)
    found = of_a_run(tmp_path, build_predictions(rows=7))
    assert (len(found.rows), found.cut) == (5, [(ROWS, 5, 7)])


def test_each_set_of_a_study_is_a_filter(analysis: Analysis) -> None:
    found = browse(analysis)
    assert [one.name for one in found.filters] == [
        "All rows",
        "mnli_matched",
        "hans",
        "Methods disagree",
        "Student wrong",
        "Student wrong, in-context right",
    ]
    assert {row.filters[0] for row in found.rows if row.set == "hans"} == {"set-1"}


def test_rows_show_what_was_compared_and_the_whole_text(written: Analysis) -> None:
    found = browse(written)
    page = Page(render(written.study))
    first = found.rows[0]
    assert len({reply.predicted for reply in first.replies if reply}) > 1
    assert [reply.confidence for reply in first.replies if reply] == [""] * 4
    assert {reply.text for row in found.rows for reply in row.replies if reply} >= {HOSTILE_ANSWER}
    for words in ("Input", "Gold answer", "Full text", first.input):
        assert words in page.words, words


def test_all_wrong_in_different_ways_is_shown_last(tmp_path: Path) -> None:
    cells = []
    for number, one in enumerate(PLANS[:2]):
        made, lines = build(one, 0, 4, {})
        for_row = [str(10 * number), "2", "5", ""]  # gold: 3, 4, 5, 6
        for_row[1] = ["4", "2"][number]
        own = [
            line.model_copy(update={"predicted": said, "correct": said == line.expected})
            for line in lines
            if line.set == "gsm8k"
            for said in [for_row[line.row]]
        ]
        cells.append((made, own))
    study = read_study([write_study_folder(tmp_path / "s", cells, varied=["method"])])
    assert [row.number for row in browse(analyse(study)).rows] == [1, 0]
