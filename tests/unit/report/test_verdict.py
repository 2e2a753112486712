"""What a report opens with, and that it never says more than the rows do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.report.pages import plain
from tests.unit.report.runs import answers, build_results, build_run, first_rows, write_run
from tests.unit.report.studies import (
    LABELS,
    Made,
    build_cell,
    cell,
    predict,
    study_of,
    with_scores,
    write_study_folder,
)
from tests.unit.report.written_studies import PLANS, build, build_written_study

from instil.report import read_study
from instil.report.analysis import Analysis, analyse
from instil.report.page import render
from instil.report.verdict import caveats, judge


def test_a_headline_where_distillation_wins(analysis: Analysis) -> None:
    verdict, sets = judge(analysis)
    assert verdict.tone == "good"
    assert verdict.headline.startswith(
        "Distillation is better than in-context on mnli_matched; on hans"
    )
    assert sets[0].label == "Better than in-context"
    assert not sets[1].skill


def chance_study(folder: Path, n: int, methods: tuple[str, ...]) -> Analysis:
    right = [row % 9 in (0, 4, 8) for row in range(n)]
    return analyse(study_of(folder, *(cell(method, right) for method in methods)))


def test_a_headline_at_chance_says_no_more(tmp_path: Path) -> None:
    verdict, (judged,) = judge(chance_study(tmp_path, 900, ("in_context", "distillation")))
    assert verdict.headline == "All methods are at chance on mnli_matched."
    assert judged.label == "At chance"
    assert "All methods are at chance on mnli_matched" in judged.sentences[0]


def test_few_rows_do_not_prove_chance(tmp_path: Path) -> None:
    verdict, (judged,) = judge(chance_study(tmp_path, 9, ("zero_shot", "distillation")))
    assert verdict.headline == "No method is shown to be above chance on mnli_matched."
    assert "too wide to exclude that the method is above chance" in judged.sentences[0]


def test_two_methods_that_the_rows_do_not_separate(tmp_path: Path) -> None:
    student = [row % 10 != 0 for row in range(300)]
    context = [row % 10 != 1 for row in range(300)]
    verdict, (judged,) = judge(
        analyse(study_of(tmp_path, cell("in_context", context), cell("distillation", student)))
    )
    assert (
        verdict.headline
        == "Distillation is not significantly different from in-context on mnli_matched."
    )
    assert verdict.tone == "open"
    assert "not significantly different from in-context (0.0" in judged.sentences[-1]


def test_a_study_without_distillation_names_the_highest_method(tmp_path: Path) -> None:
    made = [cell("zero_shot", [True] * 40 + [False] * 20), cell("in_context", [True] * 60)]
    verdict, (judged,) = judge(analyse(study_of(tmp_path, *made)))
    assert judged.sentences[-1].startswith(
        "In the paired tests, it differs significantly from 1 of 1"
    )
    assert verdict.headline == "In-context has the highest accuracy on mnli_matched."


def test_a_study_without_cells_says_so(tmp_path: Path) -> None:
    verdict, sets = judge(analyse(study_of(tmp_path)))
    assert verdict.headline == "No cell of this study has finished."
    assert sets == []


def test_cells_of_one_student_are_judged_as_a_run_is(tmp_path: Path) -> None:
    right = {"zero_shot": 30, "in_context": 90, "distillation": 87}
    made = [
        cell(
            method,
            [row < hits for row in range(100)],
            tuning="lora" * (method == "distillation") or None,
        )
        for method, hits in right.items()
    ]
    verdict, _ = judge(analyse(study_of(tmp_path, *made)))
    assert plain(verdict.headline) == "The student recovers 95 % of the prompt's gain."


def test_of_several_sets_the_headline_names_its_own(tmp_path: Path) -> None:
    plans = [one for one in PLANS if one[0] != "pattern_fine_tuning"][:3]
    assert [one[0] for one in plans] == ["zero_shot", "in_context", "distillation"]
    verdict, sets = judge(analyse(build_written_study(tmp_path / "s", plans=plans)))
    assert verdict.headline.startswith("On gsm8k, the student")
    assert all(judged.opening for judged in sets)


def unsolved(folder: Path, rows: int = 150) -> Analysis:
    plans = [(*one[:3], 0.0, *one[4:]) for one in PLANS]
    return analyse(build_written_study(folder / "s", plans=plans, seeds=(0,), rows=rows))


def test_where_nothing_is_solved_closeness_is_what_to_look_at(tmp_path: Path) -> None:
    verdict, (judged, _) = judge(unsolved(tmp_path))
    assert verdict.headline == (
        "No method solves the task on any set. Look at fidelity and cross-entropy instead."
    )
    assert (verdict.figure, judged.label) == ("0.120", "Not solved")
    assert "KL to the teacher on gsm8k" in verdict.figure_caption
    assert plain(judged.sentences[0]).startswith(
        "No method solves gsm8k: the highest accuracy is 0.0 %"
    )


def test_few_rows_do_not_prove_that_nothing_is_solved(tmp_path: Path) -> None:
    verdict, (judged, _) = judge(unsolved(tmp_path, rows=9))
    assert verdict.headline.startswith("No method is shown to solve the task on any set")
    assert "are too wide to exclude a higher accuracy" in judged.sentences[0]


def test_a_set_that_is_not_solved_is_named_beside_one_that_is(tmp_path: Path) -> None:
    plans = [one for one in PLANS if one[0] in ("zero_shot", "distillation")][:2]
    cells = []
    for one in plans:
        made, lines = build(one, 0, 150, {})
        none = {"value": 0.0, "low": 0.0, "high": 0.025, "n": 150}
        gsm8k, svamp = made.methods[0].scores
        wrong = [
            line.model_copy(update={"predicted": "no", "correct": False})
            if line.set == "svamp"
            else line
            for line in lines
        ]
        cells.append((with_scores(made, [gsm8k, svamp.model_dump() | {"accuracy": none}]), wrong))
    found = analyse(read_study([write_study_folder(tmp_path / "s", cells, varied=["method"])]))
    verdict, _ = judge(found)
    assert verdict.headline.endswith("; on svamp no method solves the task.")


def test_predicting_one_label_is_a_caveat(tmp_path: Path) -> None:
    lines = predict([row % 3 == 0 for row in range(30)], LABELS, "mnli_matched")
    same = [line.model_copy(update={"predicted": LABELS[0]}) for line in lines]
    made: Made = build_cell("zero_shot", same), same
    said = " ".join(caveats(analyse(study_of(tmp_path, made))))
    assert "One label is predicted" in said
    assert "Only one seed" in said


def test_a_sound_run_has_no_caveats(tmp_path: Path) -> None:
    assert caveats(analyse(build_run(tmp_path / "run"))) == []


def doubtful(**changes: Any) -> dict[str, Any]:
    return {
        "drift": 0.31,
        "seconds": (0.3, 0.1, 0.3),
        "kl": (1.0, 1.5),
        "training": {
            "rows": 200,
            "truncated_completions": 12,
            "steps": 80,
            "trainable_parameters": 1000,
            "trainable_share": 0.01,
            "loss": [],
        },
        **changes,
    }


def test_every_doubt_is_named(tmp_path: Path) -> None:
    said = [
        plain(caveat)
        for caveat in caveats(analyse(build_run(tmp_path / "run", (1, 16, 15), 20, **doubtful())))
    ]
    assert len(said) == 5
    for words, caveat in zip(
        (
            "evaluation rows has only 20 rows",
            "increased the KL to the teacher from 1.00 to 1.50",
            "The student drifted 0.310 nats",
            "12 completions cut at max_new_tokens (6 % of the training rows)",
            "never pays back its cost",
        ),
        said,
        strict=True,
    ):
        assert words in caveat


def test_of_several_students_the_worst_is_named(tmp_path: Path) -> None:
    for rate, drift in ((0.001, 0.2), (0.01, 0.4)):
        recipe = {"training": {"learning_rate": rate}, "tuning": {"name": "lora"}}
        build_run(tmp_path / str(rate), recipe=recipe, **doubtful(drift=drift))
    found = analyse(read_study(sorted(tmp_path.iterdir())))
    said = plain(" ".join(caveats(found)))
    assert "Distillation, learning rate = 0.01 (the worst of 2 settings) drifted 0.400" in said
    assert "(the worst of 2 settings) was trained on 12 completions cut" in said
    assert "Only one seed: all 4 settings" in said


@pytest.mark.parametrize("stored", [True, False])
def test_a_run_without_baselines_is_scored(tmp_path: Path, stored: bool) -> None:
    hits = [first_rows(80, 100), first_rows(1, 100), first_rows(82, 100)]
    lines = answers(hits)[:100]
    results = build_results(answers(hits))
    results = results.model_copy(update={"methods": results.methods[:1]})
    study = write_run(tmp_path / "run", results, lines if stored else ())
    verdict, (judged,) = judge(analyse(study))
    assert verdict.headline == "Distillation has the highest accuracy on evaluation rows."
    assert "nothing is tested" in " ".join(judged.sentences)
    assert judged.label == "Not tested"


def test_a_headline_says_what_else_is_kept(tmp_path: Path) -> None:
    verdict, _ = judge(analyse(build_run(tmp_path / "run")))
    assert verdict.headline.startswith("The student recovers")
    assert plain(verdict.rest) == "It keeps 93 % of everything else."
    assert any(
        "at 93.0 % of the positions of unrelated text" in plain(said) for said in verdict.evidence
    )
    page = plain(render(read_study([tmp_path / "run"])))
    assert plain(f"{verdict.headline} {verdict.rest}") in page
    assert page.count(plain(verdict.headline)) == 1


def test_what_was_not_measured_is_not_said(tmp_path: Path) -> None:
    verdict, _ = judge(analyse(build_run(tmp_path / "run", drift=None)))
    assert verdict.rest == ""
