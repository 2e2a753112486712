"""Cells that differ only in the seed, and what they score together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests import finished
from tests.unit.report.pages import plain
from tests.unit.report.planned import planned
from tests.unit.report.studies import Made, cell, study_of, write_study_folder
from tests.unit.report.written_studies import build

from instil.methods import MethodName
from instil.recipe.grid import plan, read_recipe
from instil.recipe.shipped import find
from instil.report import read_study, write_report
from instil.report.analysis import Analysis, analyse
from instil.report.figures import sketches
from instil.report.tables import answers
from instil.results.schema import Results
from instil.results.scores import Ends, Leaks, Written
from instil.results.statistics import proportion

WRITTEN = [
    "Zero-shot",
    "In-context, k = 8",
    "Fine-tuning",
    "Distillation, k = 8",
    "Distillation, zero-shot teacher",
    "In-context, k = 8, shuffled answers",
    "Distillation, k = 8, shuffled answers",
]


def test_a_group_is_all_seeds_of_a_setting(analysis: Analysis) -> None:
    labels = [plain(g.label()) for g in analysis.groups]
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
    assert (score.seeds, score.rows, score.different_rows) == (3, 10, 10)
    assert score.graded.over == "seeds"
    assert (score.mean, score.deviation) == (pytest.approx(0.6), pytest.approx(0.1))
    assert (score.graded.low, score.graded.high) == pytest.approx((0.351586, 0.848414), abs=1e-6)
    assert sum(sum(row.values()) for row in score.confusion.values()) == 30
    assert sum(score.predicted.values()) == pytest.approx(1)


def test_seeds_that_agree_are_judged_by_their_rows(tmp_path: Path) -> None:
    right = [row % 2 == 0 for row in range(100)]
    (found,) = analyse(
        study_of(tmp_path, *(cell("zero_shot", right, seed) for seed in (0, 1)))
    ).groups
    score = found.scores["mnli_matched"]
    assert (score.graded.over, score.different_rows) == ("rows", 100)
    assert (score.graded.low, score.graded.high) == pytest.approx((0.403832, 0.596168), abs=1e-6)


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


def test_groups_of_several_tasks_have_their_names(tmp_path: Path) -> None:
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


def test_cells_of_the_shipped_grid_of_text_are_distinguished(tmp_path: Path) -> None:
    plan_of_text = plan(read_recipe(find("gsm8k-smollm2")))
    cells = []
    for one in plan_of_text.cells:
        recipe, method = one.recipe, one.recipe.method
        reads = method in ("in_context", "distillation")
        k = recipe.demonstrations.k if reads else 0
        made, _ = build((method, k, recipe.demonstrations.answers, 0.5, 0.1, 0.5), 0, 20, {})
        settings = recipe.model_dump(mode="json")
        changes = {"name": one.name, "varied": one.varied, "recipe": settings}
        cells.append((made.model_copy(update=changes), []))
    folder = write_study_folder(tmp_path / "s", cells, varied=plan_of_text.varied)
    assert [plain(g.label()) for g in analyse(read_study([folder])).groups] == WRITTEN


def test_methods_of_text_are_grouped_over_seeds(written: Analysis) -> None:
    assert [plain(g.label()) for g in written.groups] == WRITTEN
    assert {len(g.cells) for g in written.groups} == {3}
    # A control never stands for its method.
    assert [plain(g.label()) for g in written.champions()] == WRITTEN[:4]


def test_a_study_tells_what_answers_are_like(tmp_path: Path) -> None:
    def like(tokens: float, obeyed: int, leaked: int | None) -> Written:
        return Written(
            ends=Ends(tokens_mean=tokens, cut=proportion([False]), repeats=proportion([False])),
            rules={"short": proportion([n < obeyed for n in range(4)])},
            same_answer=None if leaked is None else proportion([True, False]),
            leaks=None
            if leaked is None
            else Leaks(
                share=proportion([n < leaked for n in range(4)]),
                phrases=[],
                verbatim=proportion([False]),
                verbatim_teacher=proportion([False]),
            ),
        )

    def made(method: MethodName, seed: int, written: Written) -> Results:
        scored = finished.score(5).model_copy(update={"written": written})
        varied = {"method": method, "seed": seed}
        return finished.results(
            finished.method_result(method, scored),
            seed=seed,
            name=f"{method}-{seed}",
            varied=varied,
            recipe={"model": "tiny", "tuning": {"name": "lora"}, **varied},
        )

    cells = [
        made("zero_shot", 0, like(20, 1, None)),
        made("distillation", 0, like(8, 4, 0)),
        made("distillation", 1, like(10, 3, 1)),
    ]
    folder = finished.write_study(tmp_path / "study", cells, varied=["method", "seed"])
    found = analyse(read_study([folder]))
    table = answers(found, found.sets[0])
    assert table.columns == ("Tokens, mean", "The teacher’s answer", "Leaks", "Rule: short")
    values = {row.name: [cell.key for cell in row.cells] for row in table.rows}
    student = next(row for label, row in values.items() if "istillation" in label)
    assert student == pytest.approx([9.0, 0.5, 0.125, 0.875])
    zero = values["Zero-shot"]
    assert (zero[0], zero[3]) == (20.0, 0.25)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Answers on words" in page
