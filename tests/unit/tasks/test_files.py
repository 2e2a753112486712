"""The user's own rows and context, from files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from instil.errors import ConfigError, DataFileError, FieldError
from instil.tasks import Files
from instil.tasks.files import ROWS
from instil.tasks.rows import Row

WRITTEN = {
    "inputs.jsonl": [{"input": "2", "output": "3"}, {"input": "4"}],
    "eval.jsonl": [{"input": "6", "output": "7"}],
    "far.jsonl": [{"input": "60", "output": "61"}, {"input": "70", "output": "71"}],
    "demos.jsonl": [{"input": "0", "output": "1"}],
}
TEXTS = {"instruction.txt": "Add one.", "document.txt": "One is added."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All files that a task may name."""
    made = tmp_path / "rows"
    made.mkdir()
    for name, rows in WRITTEN.items():
        (made / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TEXTS.items():
        (made / name).write_text(text)
    return made


def task(folder: Path | None, **changes: Any) -> Files:
    named = {"folder": folder, "inputs": "inputs.jsonl", "eval": "eval.jsonl"}
    return Files.model_validate(named | changes)


def test_inputs_and_one_file_of_evaluation_rows_are_read(folder: Path) -> None:
    read = task(folder).read()
    assert read.train == [Row("2", "3"), Row("4")]
    assert read.in_domain == {ROWS: [Row("6", "7")]}
    assert (read.out_of_domain, read.inputs) == ({}, None)


def test_several_sets_have_their_names_and_their_order(folder: Path) -> None:
    read = task(folder, eval={"far": "far.jsonl", "near": "eval.jsonl"}).read()
    assert [*read.in_domain.items()] == [
        ("far", [Row("60", "61"), Row("70", "71")]),
        ("near", [Row("6", "7")]),
    ]


def test_evaluation_rows_may_be_left_out(folder: Path) -> None:
    assert task(folder, eval=None).read().in_domain == {}


def test_paths_begin_in_the_folder_or_here_or_nowhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = task(folder).read()
    whole = folder / "inputs.jsonl"
    assert task(folder, inputs=str(whole)).read() == expected
    monkeypatch.chdir(folder)
    assert Files(inputs=Path("inputs.jsonl"), eval=Path("eval.jsonl")).read() == expected
    assert task(folder).local
    assert Files().local


def test_outputs_are_needed_where_they_are_learnt_or_judged(folder: Path) -> None:
    with pytest.raises(FieldError, match=r"inputs\.jsonl, line 2: there is no field 'output'"):
        task(folder).read(need_output=True)
    whole = task(folder, inputs="far.jsonl").read(need_output=True)
    assert [row.output for row in whole.train] == ["61", "71"]
    with pytest.raises(FieldError, match=r"inputs\.jsonl, line 2: there is no field 'output'"):
        task(folder, eval="inputs.jsonl").read()


def test_a_task_without_inputs_has_nothing_to_read(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs inputs.*task\.inputs"):
        task(folder, inputs=None).read()


@pytest.mark.parametrize("changes", [{"inputs": "gone.jsonl"}, {"eval": {"far": "gone.jsonl"}}])
def test_a_missing_file_is_named(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(DataFileError, match=r"rows/gone\.jsonl: no such file"):
        task(folder, **changes).read()
    with pytest.raises(DataFileError, match=r"rows/gone\.jsonl: no such file"):
        task(folder, **changes).digest()


def everything(folder: Path | None, **changes: Any) -> Files:
    named = {
        "demos": "demos.jsonl",
        "instruction": "instruction.txt",
        "document": "document.txt",
        "eval": {"near": "eval.jsonl", "far": "far.jsonl"},
    }
    return task(folder, **(named | changes))


@pytest.mark.parametrize("name", [*WRITTEN, *TEXTS])
def test_the_digest_changes_with_the_content_of_each_file(folder: Path, name: str) -> None:
    before = everything(folder).digest()
    assert everything(folder).digest() == before
    with (folder / name).open("a") as file:
        file.write('{"input": "8", "output": "9"}\n' if name in WRITTEN else " Always.")
    assert everything(folder).digest() != before


def test_the_digest_does_not_change_with_the_place_of_a_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(folder).digest()
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert everything(moved).digest() == before
    monkeypatch.chdir(moved)
    assert everything(None).digest() == before
    (moved / "inputs.jsonl").rename(moved / "other.jsonl")
    assert everything(moved, inputs="other.jsonl").digest() == before
    assert everything(moved, inputs=str(moved / "other.jsonl")).digest() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"demos": None},
        {"instruction": None},
        {"document": None},
        {"eval": None},
        {"eval": {"near": "far.jsonl", "far": "eval.jsonl"}},
        {"eval": {"near": "eval.jsonl", "away": "far.jsonl"}},
        {"instruction": "document.txt", "document": "instruction.txt"},
        {"k": 1},
        {"turns": "last"},
        {"allow_overlap": True},
    ],
    ids=str,
)
def test_the_digest_changes_with_what_is_asked(folder: Path, changes: dict[str, Any]) -> None:
    assert everything(folder, **changes).digest() != everything(folder).digest()


def test_one_set_by_its_name_is_the_set_without_one(folder: Path) -> None:
    assert task(folder, eval={ROWS: "eval.jsonl"}).digest() == task(folder).digest()


def test_a_right_answer_is_the_gold_output() -> None:
    assert Files().right(" 3 ", "3")
    assert not Files().right("It is 3", "3")


def test_an_answer_is_compared_whole() -> None:
    assert Files().result("  It is\n3 \n") == "It is\n3"


def test_unknown_settings_are_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match="input"):
        task(folder, input="inputs.jsonl")
    with pytest.raises(ValidationError, match="k"):
        task(folder, k=0)


def test_settings_come_back_from_json_as_they_were(folder: Path) -> None:
    asked = everything(folder, k=1)
    again = Files.model_validate_json(asked.model_dump_json())
    assert again == asked
    assert again.digest() == asked.digest()
