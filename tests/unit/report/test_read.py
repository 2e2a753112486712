"""Folders as a report reads them: studies, cells and runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.report.runs import answers, build_results, build_run, chat, first_rows
from tests.unit.report.studies import cell, study_of, write_folder, write_study_folder

from instil.errors import DataFileError, DataFormatError
from instil.report import read_study
from instil.report.analysis import analyse
from instil.report.read import printable, read_marks
from instil.report.verdict import caveats
from instil.results.schema import INDEX, Failure, StudyIndex

VARIED = ["method", "seed"]


def test_done_failed_and_missing_cells_are_distinguished(tmp_path: Path) -> None:
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
    said = " ".join(caveats(analyse(study)))
    assert "Of 3\N{NO-BREAK SPACE}cells, 1 failed and 1 have not run" in said


def test_one_cell_is_a_study(tmp_path: Path) -> None:
    made = cell("zero_shot", [True, False], name="alone")
    folder = write_study_folder(tmp_path / "s", [made], varied=VARIED) / "cells" / "alone"
    study = read_study([folder])
    assert (study.title, len(study.cells), study.single) == ("alone", 1, True)
    assert not read_study([tmp_path / "s"]).single


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
    with pytest.raises(DataFileError, match=r"not a study, cell or run.*study\.json"):
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
    (study.cells[0].folder / "predictions.jsonl").write_text("{}\n")
    with pytest.raises(DataFormatError, match=r"predictions\.jsonl of this version"):
        study.predictions(study.cells[0])


@pytest.mark.parametrize("text", ["[1]", "{", "7"])
def test_an_environment_that_is_no_object_is_an_error(tmp_path: Path, text: str) -> None:
    build_run(tmp_path / "run", n=4, right=(0, 4, 4))
    (tmp_path / "run/environment.json").write_text(text)
    with pytest.raises(DataFormatError, match=r"environment\.json"):
        read_study([tmp_path / "run"])


@pytest.mark.parametrize("name", ["..", ".", "a/b", "..\\b", ""])
def test_a_cell_is_a_folder_of_the_study(name: str) -> None:
    with pytest.raises(ValueError, match="cells"):
        StudyIndex(title="t", varied=[], cells=[name])


def test_a_run_is_a_cell_for_each_of_its_methods(tmp_path: Path) -> None:
    study = build_run(tmp_path / "run")
    assert [c.name for c in study.cells] == ["run/zero_shot", "run/in_context", "run"]
    zero_shot, in_context, student = study.cells
    results = student.results
    assert (student.training, student.phases) == (results.training, results.phases)
    assert (student.tuning, student.shipped_bytes, student.drift) == ("lora", 4_900_000, 0.041)
    for baseline in (zero_shot, in_context):
        assert (baseline.training, baseline.tuning, baseline.phases) == (None, None, {})
        assert (baseline.shipped_bytes, baseline.drift, baseline.reused) == (0, None, [])
        assert baseline.teacher == []
    assert [c.k for c in study.cells] == [0, 8, 8]
    assert [score.accuracy for score in student.teacher] == [
        score.accuracy for score in in_context.scores
    ]
    assert [len(study.predictions(c)) for c in study.cells] == [100] * 3


def test_several_runs_share_their_baselines(tmp_path: Path) -> None:
    for seed in (0, 1):
        for rate in (0.001, 0.01):
            recipe = {"training": {"learning_rate": rate}, "tuning": {"name": "lora"}}
            build_run(tmp_path / f"{seed}-{rate}", seed=seed, recipe=recipe)
    study = read_study(sorted(tmp_path.iterdir()))
    groups = analyse(study).groups
    assert [group.method for group in groups] == [
        "zero_shot",
        "in_context",
        "distillation",
        "distillation",
    ]
    assert [group.settings.get("training.learning_rate") for group in groups[2:]] == [0.001, 0.01]
    assert [[c.seed for c in group.cells] for group in groups] == [[0, 1]] * 4


def test_an_instruction_is_no_control_without_demonstrations(tmp_path: Path) -> None:
    said = {"description": "an instruction", "k": 0, "tokens": 12}
    for name, prompt in (("a", {}), ("b", {"prompt": chat()})):
        recipe = {"task": {"name": "files", "instruction": f"{name}.txt"}}
        recipe |= {"tuning": {"name": "lora"}, "demonstrations": {"k": 8}}
        build_run(tmp_path / name, context=said, recipe=recipe, **prompt)
    groups = analyse(read_study([tmp_path / "a", tmp_path / "b"])).groups
    assert {group.control for group in groups} == {None}
    labels = [group.label().replace("\N{NO-BREAK SPACE}", " ") for group in groups]
    assert labels == [
        "Zero-shot",
        "In-context, instruction = a.txt",
        "Distillation, instruction = a.txt",
        "In-context, instruction = b.txt",
        "Distillation, instruction = b.txt",
    ]


def test_what_cannot_be_printed_is_replaced(tmp_path: Path) -> None:
    odd = "a\x01\x85\u2028\ufeff\uffffb\r\nc"
    lines = answers([first_rows(n, 6) for n in (5, 1, 6)])
    lines = [line.model_copy(update={"set": odd, "input": f"{odd}{line.row}"}) for line in lines]
    made = build_results(lines, model=odd)
    named = [
        method.model_copy(
            update={"scores": [s.model_copy(update={"name": odd}) for s in method.scores]}
        )
        for method in made.methods
    ]
    write_folder(tmp_path / "run", made.model_copy(update={"methods": named}), lines)
    study = read_study([tmp_path / "run"])
    shown = "a" + "\ufffd" * 5 + "b\nc"
    assert study.cells[0].model == shown
    marks = read_marks(study)
    for found in study.cells:
        assert found.scores[0].name == shown
        assert marks[found.name][shown][0].input == f"{shown}0"


def test_text_of_every_script_stays() -> None:
    text = "\u202eabc\u2066 \u0627\u0644 \U0001f600 a\tb\nc \u00a0 e\u0301 \u200d"
    assert printable({text: [text, 1, None]}) == {text: [text, 1, None]}
