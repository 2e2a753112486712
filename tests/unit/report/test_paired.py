"""Two methods on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.report.pages import plain
from tests.unit.report.planned import planned
from tests.unit.report.runs import build_run
from tests.unit.report.studies import build_cell, cell, study_of

from instil.report.analysis import Analysis, analyse
from instil.report.set_verdict import against
from instil.report.verdict import caveats, judge


def test_paired_test_against_counts_by_hand(tmp_path: Path) -> None:
    # Rows 0-4 both, 5-9 distillation alone, 10 in-context alone, 11 neither.
    student = [row < 10 for row in range(12)]
    context = [row < 5 or row == 10 for row in range(12)]
    found = analyse(
        study_of(tmp_path, cell("in_context", context), cell("distillation", student))
    ).tests
    (test,) = found
    assert (test.one.method, test.other.method) == ("distillation", "in_context")
    assert (test.only_one, test.only_other, test.rows, test.compared) == (5, 1, 12, 12)
    assert test.both == 5
    assert test.difference == pytest.approx(4 / 12)
    assert test.p == test.p_holm == pytest.approx(0.21875)


def test_a_row_that_seeds_share_counts_once(tmp_path: Path) -> None:
    student = [row < 10 for row in range(12)]
    context = [row < 5 or row == 10 for row in range(12)]
    cells = [
        made
        for seed in range(5)
        for made in (cell("in_context", context, seed), cell("distillation", student, seed))
    ]
    (test,) = analyse(study_of(tmp_path, *cells)).tests
    assert (test.only_one, test.only_other, test.rows, test.compared) == (5, 1, 12, 60)
    assert test.p == pytest.approx(0.21875)


def test_rows_that_differ_are_not_paired(tmp_path: Path) -> None:
    one, lines = cell("in_context", [True, False, True])
    others = [line.model_copy(update={"input": f"other {line.row}"}) for line in lines]
    found = analyse(study_of(tmp_path, (one, lines), (build_cell("distillation", others), others)))
    assert found.tests == []
    assert analyse(study_of(tmp_path / "b", (one, []), cell("distillation", [True]))).tests == []


def test_holm_counts_every_pair_of_the_set(analysis: Analysis) -> None:
    for name in ("mnli_matched", "hans"):
        tests = analysis.tests_of(name)
        least = min(tests, key=lambda test: test.p)
        assert least.p_holm == pytest.approx(min(1.0, len(tests) * least.p))
    for test in analysis.tests:
        shared = set(test.one.settings) & set(test.other.settings) - {"method"}
        assert all(test.one.settings[key] == test.other.settings[key] for key in shared)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("sentiment-smollm2", {}),
        ("nli-opt", {"seed": [0], "demonstrations.k": [1, 8], "tuning": [{"name": "lora"}]}),
    ],
)
def test_a_student_is_compared_with_the_prompt_that_it_replaces(
    tmp_path: Path, name: str, grid: dict[str, Any]
) -> None:
    """Whatever it has learnt from: several contexts, or a larger model."""
    found = planned(tmp_path, name, **grid)
    for test in found.tests:
        differ = {
            key
            for key in test.one.settings.keys() & test.other.settings.keys()
            if test.one.settings[key] != test.other.settings[key] and key != "method"
        }
        assert not differ or (test.one.method == "distillation" and test.other.plain_prompt)
        assert all(key.startswith("teacher.") for key in differ)
    students = [
        group
        for group in found.groups
        if group.method == "distillation" and "student.keep_layers" not in group.cells[0].varied
    ]
    for student in students:
        prompts = [t.other for t in found.tests if t.one is student and t.other.plain_prompt]
        assert {other.settings.get("demonstrations.k") for other in prompts} == {
            student.settings.get("demonstrations.k")
        }
    taught = next(s for s in students if any(k.startswith("teacher.") for k in s.settings))
    best = against(found, found.sets[0].name, taught, "in_context")
    assert best is not None
    assert best.other.plain_prompt
    verdict, (first, *_) = judge(found)
    assert "the plain prompt" in verdict.headline
    assert "the plain prompt" in first.sentences[-1]
    if name == "sentiment-smollm2":
        assert "and its teacher (" in first.sentences[-1]
        (caveat,) = (said for said in caveats(found) if "The plain prompt on sst2" in said)
        assert "an accuracy of 66.7" in caveat
        assert "Over 6 such sets, the mean accuracy is 60.0" in caveat


def test_a_method_is_tested_against_its_controls_alone(written: Analysis) -> None:
    held = [
        (plain(t.one.label()), plain(t.other.label()))
        for t in written.tests_of("gsm8k")
        if t.controls
    ]
    assert sorted(held) == [
        ("Distillation, k = 8", "Distillation, k = 8, shuffled answers"),
        ("Distillation, k = 8", "Distillation, zero-shot teacher"),
        ("In-context, k = 8", "In-context, k = 8, shuffled answers"),
    ]


def test_rows_without_gold_outputs_are_not_paired(tmp_path: Path) -> None:
    assert analyse(build_run(tmp_path / "run", None)).tests == []
