"""The report of a study whose answers are written: no labels, no chance, whole texts, training curves."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests.unit.report.studies import build_cell, predict, write_study_folder
from tests.unit.report.test_page import Page
from tests.unit.report.written_studies import PLANS, build, build_written_study

from instil.recipe.grid import plan, read_recipe
from instil.report import Study, read_study, render_study
from instil.report.analysis import Analysis, analyse
from instil.report.checkpoints import milestones
from instil.report.study_browser import browse
from instil.report.study_figures import sketches
from instil.report.study_verdict import judge_study
from instil.report.tables import to_csv, to_latex, to_markdown

NBSP = "\N{NO-BREAK SPACE}"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\nSo it is $3 & more. #### 7"
OF_LABELS = ("chance,", "majority", "calibration", "verbalizer", "confusion", "predicted label")
RECIPES = Path(__file__).parents[3] / "src/instil/recipe/shipped"
LABELS = [
    "Zero-shot",
    "In-context, k = 8",
    "Fine-tuning",
    "Distillation, k = 8",
    "Distillation, zero-shot teacher",
    "In-context, k = 8, shuffled answers",
    "Distillation, k = 8, shuffled answers",
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("written") / "s"
    return build_written_study(folder, texts=dict.fromkeys(range(0, 150, 5), HOSTILE))


@pytest.fixture(scope="module")
def analysis(study: Study) -> Analysis:
    return analyse(study)


@pytest.fixture(scope="module")
def page(study: Study) -> Page:
    return Page(render_study(study))


def unsolved(folder: Path, seeds: tuple[int, ...] = (0,), rows: int = 150) -> Analysis:
    plans = [(*one[:3], 0.0, *one[4:]) for one in PLANS]
    return analyse(build_written_study(folder / "s", plans=plans, seeds=seeds, rows=rows))


def said(text: str) -> str:
    return text.replace(NBSP, " ")


def test_no_section_and_no_word_is_about_labels(page: Page, analysis: Analysis) -> None:
    assert page.open == []
    sections = ["scores", "figures", "pairs", "costs", "rows", "settings"]
    assert [s["id"] for s in page.named("section")] == sections
    assert {a["href"][1:] for a in page.named("a")} == set(sections)
    texts = [page.words, to_markdown(analysis), to_latex(analysis)]
    texts += [sketch.description for sketch in sketches(analysis)]
    for text in texts:
        for word in OF_LABELS:
            assert word not in text.lower(), word
    assert "At chance" not in page.words
    assert "Cross-entropy" in page.words
    assert (
        "the student’s own weights" in page.words
    )  # the teacher, though its answers are not scored


def test_cells_of_the_shipped_grid_are_told_apart(tmp_path: Path) -> None:
    planned = plan(read_recipe(RECIPES / "gsm8k-smollm2.yaml"))
    cells = []
    for one in planned.cells:
        recipe, method = one.recipe, one.recipe.method
        reads = method in ("in_context", "distillation")
        k = recipe.demonstrations.k if reads else 0
        made, _ = build((method, k, recipe.demonstrations.answers, 0.5, 0.1, 0.5), 0, 20, {})
        settings = recipe.model_dump(mode="json")
        changes = {"name": one.name, "varied": one.varied, "recipe": settings}
        cells.append((made.model_copy(update=changes), []))
    folder = write_study_folder(tmp_path / "s", cells, varied=planned.varied)
    assert [said(g.label()) for g in analyse(read_study([folder])).groups] == LABELS


def test_methods_are_grouped_over_seeds(analysis: Analysis) -> None:
    assert [said(g.label()) for g in analysis.groups] == LABELS
    assert {len(g.cells) for g in analysis.groups} == {3}
    # A control stands for its method nowhere.
    assert [said(g.label()) for g in analysis.champions()] == LABELS[:4]


def test_a_method_is_tested_against_its_controls_alone(analysis: Analysis) -> None:
    held = [
        (said(t.one.label()), said(t.other.label()))
        for t in analysis.tests_of("gsm8k")
        if t.controls
    ]
    assert sorted(held) == [
        ("Distillation, k = 8", "Distillation, k = 8, shuffled answers"),
        ("Distillation, k = 8", "Distillation, zero-shot teacher"),
        ("In-context, k = 8", "In-context, k = 8, shuffled answers"),
    ]


def test_the_verdict_speaks_of_controls_and_of_closeness(analysis: Analysis) -> None:
    _, (judged, _) = judge_study(analysis)
    text = said(" ".join(judged.sentences))
    for part in (
        "its control with a zero-shot teacher (+",
        "its control with shuffled answers (+",
        "KL to the teacher is 0.120 nats a token for distillation, k = 8, and 0.610 for zero-shot.",
        "most probable for fine-tuning: cross-entropy 0.580 nats a token, against 1.12 for",
    ):
        assert part in text, part


def test_where_nothing_is_solved_closeness_is_what_to_look_at(tmp_path: Path) -> None:
    verdict, (judged, _) = judge_study(unsolved(tmp_path))
    assert verdict.headline == (
        "No method solves the task on any set: fidelity and cross-entropy are what to look at."
    )
    assert (verdict.figure, judged.label) == ("0.120", "Not solved")
    assert "KL to the teacher on gsm8k" in verdict.figure_caption
    assert said(judged.sentences[0]).startswith(
        "No method solves gsm8k: the highest accuracy is 0.0 %"
    )


def test_few_rows_do_not_prove_that_nothing_is_solved(tmp_path: Path) -> None:
    verdict, (judged, _) = judge_study(unsolved(tmp_path, rows=9))
    assert verdict.headline.startswith("No method is shown to solve the task on any set")
    assert "leave room for skill" in judged.sentences[0]


def test_a_set_that_is_not_solved_is_told_beside_one_that_is(tmp_path: Path) -> None:
    plans = [one for one in PLANS if one[0] in ("zero_shot", "distillation")][:2]
    cells = []
    for one in plans:
        cell, lines = build(one, 0, 150, {})
        none = {"value": 0.0, "low": 0.0, "high": 0.025, "n": 150}
        svamp = cell.scores[1].model_dump() | {"accuracy": none}
        scores = [cell.scores[0].model_dump(), svamp]
        wrong = [
            line.model_copy(update={"predicted": "no"}) if line.set == "svamp" else line
            for line in lines
        ]
        cells.append((cell.model_validate(cell.model_dump() | {"scores": scores}), wrong))
    found = analyse(read_study([write_study_folder(tmp_path / "s", cells, varied=["method"])]))
    verdict, _ = judge_study(found)
    assert verdict.headline.endswith("; on svamp no method solves the task.")


def test_rows_show_question_numbers_and_whole_texts(page: Page, analysis: Analysis) -> None:
    found = browse(analysis)
    first = found.rows[0]
    assert len({reply.predicted for reply in first.replies if reply}) > 1
    assert [reply.confidence for reply in first.replies if reply] == [""] * 4
    assert {reply.written for row in found.rows for reply in row.replies if reply} >= {HOSTILE}
    for words in ("Question", "Gold answer", "Whole text", first.input):
        assert words in page.words, words


def test_all_wrong_in_different_ways_is_shown_last(tmp_path: Path) -> None:
    cells = []
    for number, one in enumerate(PLANS[:2]):
        cell, lines = build(one, 0, 4, {})
        for_row = [str(10 * number), "2", "5", ""]  # gold: 3, 4, 5, 6
        for_row[1] = ["4", "2"][number]
        own = [
            line.model_copy(update={"predicted": for_row[line.row]})
            for line in lines
            if line.set == "gsm8k"
        ]
        cells.append((cell, own))
    study = read_study([write_study_folder(tmp_path / "s", cells, varied=["method"])])
    assert [row.number for row in browse(analyse(study)).rows] == [1, 0]


def test_markup_in_answers_stays_text(page: Page) -> None:
    assert HOSTILE.split("\n")[0] in page.words
    assert page.named("img") == []
    assert len(page.named("script")) == 1


def test_csv_has_the_columns_of_written_answers(analysis: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(analysis))))
    assert len(rows) == 3 * 7 * 2
    assert {"cross_entropy", "kl_to_teacher", "agreement", "demonstrations.answers"} <= set(rows[0])
    for name in ("chance", "majority", "calibration_error", "verbalizer_mass", "confusion"):
        assert name not in rows[0], name
    student = next(row for row in rows if row["cell"] == "distillation-k8-gold-seed0")
    assert (student["cross_entropy"], student["kl_to_teacher"]) == ("0.64", "0.12")


def test_milestones_are_means_over_seeds(analysis: Analysis) -> None:
    group = analysis.groups[3]
    first, *_, kept, last = milestones(group)
    assert (first.step, kept.step, last.step) == (0, 200, 250)
    assert (kept.seeds, kept.kept, last.kept) == (3, 3, 0)
    assert kept.accuracy.mean == pytest.approx(0.53)
    # Student's t over 0.52, 0.53, 0.54; before training the seeds agree, and rows are counted.
    assert kept.accuracy.low == pytest.approx(0.53 - 4.302653 * 0.01 / 3**0.5, abs=1e-6)
    assert first.accuracy.low == pytest.approx(0.2190, abs=2e-3)
    assert kept.kl is not None
    assert kept.kl.mean == pytest.approx(0.125)
    assert milestones(analysis.groups[0]) == []


def test_figures_of_training_and_of_both_domains(analysis: Analysis) -> None:
    drawn = {sketch.name: sketch.inline() for sketch in sketches(analysis)}
    assert list(drawn) == [
        "accuracy",
        "training-accuracy",
        "training-kl",
        "training-cross-entropy",
    ]
    for figure in drawn.values():
        assert ElementTree.fromstring(figure.svg).tag.endswith("svg")
        assert re.findall(r"#[0-9a-f]{6}", figure.svg) == []
    bars = said(drawn["accuracy"].description)
    mean = analysis.groups[3].scores["svamp"].mean
    assert f"svamp, out of domain {100 * mean:.1f} %" in bars
    curves = said(drawn["training-accuracy"].description)
    assert "Distillation, zero-shot teacher: at 0 30.0 %" in curves
    assert "at 200 53.0 % (50.5 % to 55.5 %) kept checkpoint, at 250" in curves
    assert "In-context" not in curves
    assert "at 200 0.125" in said(drawn["training-kl"].description)


def test_several_k_are_an_axis_and_no_bars(tmp_path: Path) -> None:
    plans = [PLANS[0], *(("distillation", k, "gold", 0.4, 0.1, 0.6) for k in (0, 2, 8))]
    names = [s.name for s in sketches(analyse(build_written_study(tmp_path / "s", plans=plans)))]
    assert names[:2] == ["accuracy-demonstrations-k-gsm8k", "accuracy-demonstrations-k-svamp"]


def test_a_study_of_labels_beside_one_of_written_answers(tmp_path: Path) -> None:
    written = build_written_study(tmp_path / "w", seeds=(0,), rows=40)
    lines = predict([True, False] * 20, ["a", "b"], "mnli_matched")
    labelled = [(build_cell("zero_shot", lines, labels=["a", "b"], name="labels"), lines)]
    write_study_folder(tmp_path / "l", labelled, varied=["method"])
    study = read_study([tmp_path / "w", tmp_path / "l"])
    assert len(study.cells) == len(written.cells) + 1
    page = Page(render_study(study))
    assert "confusion" in [s["id"] for s in page.named("section")]
    for words in (
        "Calibration error",
        "Cross-entropy, nats a token",
        "Whole text",
        "chance 50.0 %",
    ):
        assert words in page.words, words
    assert "chance 0.0" not in page.words
