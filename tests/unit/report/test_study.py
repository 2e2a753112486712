"""A study on disk, read, grouped, tested and judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.report.studies import (
    LABELS,
    build_cell,
    build_study,
    predict,
    write_study_folder,
)

from instil.errors import DataFileError, DataFormatError
from instil.methods import METHODS
from instil.recipe.grid import plan, read_recipe
from instil.recipe.shipped import find
from instil.report import Study, read_study
from instil.report.analysis import Analysis, analyse
from instil.report.study_figures import sketches
from instil.report.study_verdict import _against, judge_study, study_caveats
from instil.results.cell import Cell, CellPrediction, Failure, SingleContext
from instil.results.study_index import INDEX, StudyIndex

VARIED = ["method", "seed"]
Made = tuple[Cell, list[CellPrediction]]


def cell(method: str, right: list[bool], seed: int = 0, **changes: Any) -> Made:
    lines = predict(right, LABELS, "mnli_matched")
    return build_cell(method, lines, seed=seed, **changes), lines


def study_of(folder: Path, *cells: Made, varied: list[str] | None = None) -> Study:
    return read_study([write_study_folder(folder / "s", cells, varied=varied or VARIED)])


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder = tmp_path_factory.mktemp("study") / "s"
    return analyse(build_study(folder, tunings=("lora", "bitfit"), ks=(2, 16)))


def test_done_failed_and_missing_cells_are_told_apart(tmp_path: Path) -> None:
    failure = Failure(name="x", varied={"seed": 3}, error="killed", message="memory", seconds=9)
    folder = write_study_folder(
        tmp_path / "s",
        [cell("zero_shot", [True, False])],
        varied=VARIED,
        failures=[failure],
        missing=["y"],
    )
    study = read_study([folder])
    assert [c.method for c in study.cells] == ["zero_shot"]
    assert study.failures == [failure]
    assert study.missing == ["y"]
    assert len(study.predictions(study.cells[0])) == 2
    caveats = " ".join(study_caveats(analyse(study)))
    assert "Of 3\N{NO-BREAK SPACE}cells, 1 failed and 1 have not run" in caveats


def test_one_cell_is_a_study(tmp_path: Path) -> None:
    made = cell("zero_shot", [True, False], name="alone")
    folder = write_study_folder(tmp_path / "s", [made], varied=VARIED) / "cells" / "alone"
    study = read_study([folder])
    assert (study.title, len(study.cells)) == ("alone", 1)


def test_joined_studies_keep_both_of_two_cells_of_one_name(tmp_path: Path) -> None:
    one = write_study_folder(
        tmp_path / "a", [cell("zero_shot", [True, False], name="c")], varied=VARIED
    )
    changed = cell("zero_shot", [True, True], name="c", model="other")
    two = write_study_folder(tmp_path / "b", [changed], varied=VARIED)
    study = read_study([one, two, one])
    assert [c.name for c in study.cells] == ["c", "b/c"]
    assert "model" in study.varied
    found = analyse(study)
    assert [g.label() for g in found.groups] == ["Zero-shot, tiny", "Zero-shot, other"]


def test_a_folder_that_is_none_of_them_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"no study, cell or run.*study\.json"):
        read_study([tmp_path])
    with pytest.raises(DataFileError, match="no such folder"):
        read_study([tmp_path / "none"])
    with pytest.raises(DataFileError, match="no folder"):
        read_study([])


def test_files_of_another_version_are_errors(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"schema_version": 2}', encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"study\.json of this version"):
        read_study([tmp_path])
    study = study_of(tmp_path, cell("zero_shot", [True]))
    (study.folders[study.cells[0].name] / "predictions.jsonl").write_text("{}\n")
    with pytest.raises(DataFormatError, match=r"predictions\.jsonl of this version"):
        study.predictions(study.cells[0])


@pytest.mark.parametrize("name", ["..", ".", "a/b", "..\\b", ""])
def test_a_cell_is_a_folder_of_the_study(name: str) -> None:
    with pytest.raises(ValueError, match="cells"):
        StudyIndex(title="t", varied=[], cells=[name])


def test_a_group_is_all_seeds_of_a_setting(analysis: Analysis) -> None:
    labels = [g.label().replace("\N{NO-BREAK SPACE}", " ") for g in analysis.groups]
    assert labels == [
        "Zero-shot",
        "In-context, k = 2",
        "In-context, k = 16",
        "Pattern fine-tuning, LoRA",
        "Pattern fine-tuning, BitFit",
        "Vanilla fine-tuning, LoRA",
        "Vanilla fine-tuning, BitFit",
        "Distillation, LoRA, k = 2",
        "Distillation, LoRA, k = 16",
        "Distillation, BitFit, k = 2",
        "Distillation, BitFit, k = 16",
    ]
    assert {tuple(c.seed for c in g.cells) for g in analysis.groups} == {(0, 1, 2)}


def test_mean_and_interval_over_seeds(tmp_path: Path) -> None:
    hits = (5, 6, 7)
    cells = [cell("zero_shot", [row < n for row in range(10)], seed) for seed, n in enumerate(hits)]
    (found,) = analyse(study_of(tmp_path, *cells)).groups
    score = found.scores["mnli_matched"]
    assert (score.seeds, score.rows, score.different_rows, score.over) == (3, 10, 10, "seeds")
    assert (score.mean, score.deviation) == (pytest.approx(0.6), pytest.approx(0.1))
    assert (score.low, score.high) == pytest.approx((0.351586, 0.848414), abs=1e-6)
    assert sum(sum(row.values()) for row in score.confusion.values()) == 30
    assert sum(score.predicted.values()) == pytest.approx(1)


def test_seeds_that_agree_are_judged_by_their_rows(tmp_path: Path) -> None:
    right = [row % 2 == 0 for row in range(100)]
    (found,) = analyse(
        study_of(tmp_path, *(cell("zero_shot", right, seed) for seed in (0, 1)))
    ).groups
    score = found.scores["mnli_matched"]
    assert (score.over, score.different_rows) == ("rows", 100)
    assert (score.low, score.high) == pytest.approx((0.403832, 0.596168), abs=1e-6)


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


def test_a_section_is_varied_by_its_leaves(tmp_path: Path) -> None:
    def taught(method: str, contexts: int, listed: bool) -> Made:
        teacher = {"contexts": contexts, "calibration": "none", "model": None}
        own = {"teacher": {"contexts": contexts}} if listed else {}
        return cell(
            method, [True], name=f"{method}{contexts}", recipe={"teacher": teacher}, varied=own, k=4
        )

    made = [taught("in_context", 1, False), taught("in_context", 8, True)]
    found = analyse(study_of(tmp_path, *made, varied=["method", "teacher", "seed"]))
    assert [g.settings for g in found.groups] == [
        {"method": "in_context", "teacher.contexts": 1},
        {"method": "in_context", "teacher.contexts": 8},
    ]


def planned(folder: Path, name: str, **grid: Any) -> Analysis:
    """A shipped recipe as if it had been run, with these values in its grid."""
    settings = read_recipe(find(name))
    grids = settings["grid"] if isinstance(settings["grid"], list) else [settings["grid"]]
    for one in grids:
        one.update({key: values for key, values in grid.items() if key in one})
    cells = []
    for found in plan(settings).cells:
        recipe, method = found.recipe, METHODS[found.recipe.method]
        task: Any = recipe.task
        lines = [
            line
            for place in (*task.in_domain, *task.out_of_domain)
            for line in predict([n % 3 > 0 for n in range(60)], LABELS, place)
        ]
        made = build_cell(
            recipe.method,
            lines,
            seed=recipe.seed,
            tuning=recipe.tuning.name if method.learns else None,
            k=recipe.demonstrations.k if method.teacher or method.context else 0,
            name=found.name,
            varied=found.varied,
            recipe=recipe.model_dump(mode="json"),
            model=recipe.model,
            task=task.name,
        )
        if recipe.method == "in_context" and recipe.teacher.contexts > 1:
            single = [SingleContext(accuracy=a, calibrated=0.8) for a in (0.5, 0.7)]
            scores = [s.model_copy(update={"single_contexts": single}) for s in made.scores]
            made = made.model_copy(update={"scores": scores})
        cells.append((made, lines))
    folder = write_study_folder(folder / "s", cells, varied=plan(settings).varied)
    return analyse(read_study([folder]))


def test_a_study_of_several_tasks_is_told_by_their_names(tmp_path: Path) -> None:
    """Their patterns and labels differ, too, which is no setting that anybody has varied."""
    found = planned(tmp_path, "llmft-opt", seed=[0], model=["facebook/opt-125m"])
    keys = {key for group in found.groups for key in group.settings}
    assert keys == {"method", "model", "task", "demonstrations.k", "training.rows"}
    assert {group.settings["task"] for group in found.groups} == {"nli", "paraphrase"}
    assert max(len(group.label()) for group in found.groups) < 80
    drawn = {sketch.name for sketch in sketches(found)}
    assert {
        f"accuracy-demonstrations-k-{name}-facebook-opt-125m"
        for name in ("nli-hans", "paraphrase-paws")
    } <= drawn


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("sentiment-smollm2", {}),
        ("nli-opt", {"seed": [0], "demonstrations.k": [1, 8], "tuning": [{"name": "lora"}]}),
    ],
)
def test_a_student_is_held_against_the_prompt_that_it_replaces(
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
        against = [t.other for t in found.tests if t.one is student and t.other.plain_prompt]
        assert {other.settings.get("demonstrations.k") for other in against} == {
            student.settings.get("demonstrations.k")
        }
    taught = next(s for s in students if any(k.startswith("teacher.") for k in s.settings))
    best = _against(found, found.sets[0].name, taught, "in_context")
    assert best is not None
    assert best.other.plain_prompt
    verdict, (first, *_) = judge_study(found)
    assert "the plain prompt" in verdict.headline
    assert "the plain prompt" in first.sentences[-1]
    if name == "sentiment-smollm2":
        assert "and its teacher (" in first.sentences[-1]
        (caveat,) = (told for told in study_caveats(found) if "The plain prompt on sst2" in told)
        assert "with 66.7" in caveat
        assert "6 draws have 60.0" in caveat


def test_the_prompt_that_students_replace_has_a_line_of_its_own(tmp_path: Path) -> None:
    grid = {"seed": [0], "demonstrations.k": [1, 8], "tuning": [{"name": "lora"}]}
    drawn = sketches(planned(tmp_path, "nli-opt", **grid))
    (chart,) = (one for one in drawn if one.name == "accuracy-demonstrations-k-mnli-matched")
    assert "In-context, teacher\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}itself" in chart.description


def test_a_headline_where_distillation_wins(analysis: Analysis) -> None:
    verdict, sets = judge_study(analysis)
    assert verdict.tone == "good"
    assert verdict.headline.startswith(
        "Distillation is ahead of in-context on mnli_matched; on hans"
    )
    assert sets[0].label == "Ahead of in-context"
    assert not sets[1].skill


def chance_study(folder: Path, n: int, methods: tuple[str, ...]) -> Analysis:
    right = [row % 9 in (0, 4, 8) for row in range(n)]
    return analyse(study_of(folder, *(cell(method, right) for method in methods)))


def test_a_headline_at_chance_says_no_more(tmp_path: Path) -> None:
    verdict, (judged,) = judge_study(chance_study(tmp_path, 900, ("in_context", "distillation")))
    assert verdict.headline == "All methods are at chance on mnli_matched."
    assert judged.label == "At chance"
    assert "All methods are at chance on mnli_matched" in judged.sentences[0]


def test_few_rows_do_not_prove_chance(tmp_path: Path) -> None:
    verdict, (judged,) = judge_study(chance_study(tmp_path, 9, ("zero_shot", "distillation")))
    assert verdict.headline == "No method is shown to be above chance on mnli_matched."
    assert "leaves room for skill" in judged.sentences[0]


def test_two_methods_that_the_rows_do_not_tell_apart(tmp_path: Path) -> None:
    student = [row % 10 != 0 for row in range(300)]
    context = [row % 10 != 1 for row in range(300)]
    verdict, (judged,) = judge_study(
        analyse(study_of(tmp_path, cell("in_context", context), cell("distillation", student)))
    )
    assert verdict.headline == "Distillation is not told apart from in-context on mnli_matched."
    assert verdict.tone == "open"
    assert "not apart from in-context (0.0" in judged.sentences[-1]


def test_a_study_without_distillation_names_who_is_highest(tmp_path: Path) -> None:
    made = [cell("zero_shot", [True] * 40 + [False] * 20), cell("in_context", [True] * 60)]
    verdict, (judged,) = judge_study(analyse(study_of(tmp_path, *made)))
    assert judged.sentences[-1].startswith("The paired tests tell it apart from 1 of 1")
    assert verdict.headline == "In-context scores highest on mnli_matched."


def test_a_study_without_cells_says_so(tmp_path: Path) -> None:
    verdict, sets = judge_study(analyse(study_of(tmp_path)))
    assert verdict.headline == "No cell of this study has finished."
    assert sets == []


def test_predicting_one_label_is_a_caveat(tmp_path: Path) -> None:
    lines = predict([row % 3 == 0 for row in range(30)], LABELS, "mnli_matched")
    same = [line.model_copy(update={"predicted": LABELS[0]}) for line in lines]
    made: Callable[[], Made] = lambda: (build_cell("zero_shot", same), same)  # noqa: E731
    said = " ".join(study_caveats(analyse(study_of(tmp_path, made()))))
    assert "One label is predicted" in said
    assert "One seed only" in said


def test_joined_cells_with_another_batch_or_loss_are_two_settings(tmp_path: Path) -> None:
    """Keys that end in a word of a setting that changes no number, such as `evaluation.batch_size`, do count."""

    def of(seed: int, **recipe: Any) -> Made:
        made, lines = cell("distillation", [True, False, True], seed=seed, tuning="lora")
        return made.model_copy(update={"recipe": made.recipe | recipe}), lines

    for number, (one, other) in enumerate(
        [
            ({"training": {"batch_size": 8}}, {"training": {"batch_size": 2}}),
            ({"objective": {"name": "forward_kl"}}, {"objective": {"name": "reverse_kl"}}),
        ]
    ):
        folders = [
            write_study_folder(tmp_path / f"{number}{name}", [of(seed, **recipe)], varied=[])
            for seed, (name, recipe) in enumerate((("one", one), ("other", other)))
        ]
        assert len(analyse(read_study(folders)).groups) == 2
        section = next(iter(one))
        varied = [of(0, **one), of(1, **other)]
        alone = write_study_folder(tmp_path / f"{number}alone", varied, varied=[section])
        assert len(analyse(read_study([alone])).groups) == 2


def test_a_teacher_without_demonstrations_is_a_control_whatever_its_grid_varies(
    tmp_path: Path,
) -> None:
    plain, lines = cell("distillation", [True] * 9, k=0)
    plain = plain.model_copy(update={"varied": {"method": "distillation"}})
    plain = plain.model_copy(update={"recipe": plain.recipe | {"task": {"name": "nli"}}})
    shown = [cell(method, [True, False] * 4, k=8) for method in ("in_context", "distillation")]
    found = analyse(
        study_of(tmp_path, (plain, lines), *shown, varied=["method", "demonstrations.k"])
    )
    controls = {g.cells[0].k: g.control for g in found.groups if g.method == "distillation"}
    assert controls == {0: "zero-shot teacher", 8: None}
    best = found.best("mnli_matched", "distillation")
    assert best is not None
    assert best.cells[0].k == 8
