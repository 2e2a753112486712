from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from instil.errors import DataFileError, FieldError
from instil.tasks import Classification, Task
from instil.tasks.rows import Row

ROWS = [
    {"subject": "Refund", "body": "Give me my money", "kind": "billing"},
    {"subject": "Hi", "body": "It does not start", "kind": "fault"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = "\n".join(map(json.dumps, ROWS))
    (tmp_path / "train.jsonl").write_text(lines)
    (tmp_path / "eval.csv").write_text("subject,body,kind\nOld,Broken,fault\n")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "other.parquet")
    return tmp_path


def task(folder: Path, **changes: Any) -> Classification:
    settings = {
        "folder": folder,
        "train": "train.jsonl",
        "in_domain": {"eval": "eval.csv"},
        "out_of_domain": {"other": "other.parquet"},
        "pattern": "{subject}: {body}\nKind:",
        "verbalizer": {"billing": "Bill", "fault": ["Fault", "Bug"]},
        "label": "kind",
    }
    return Classification.model_validate({**settings, **changes})


def test_rows_are_rendered_and_outputs_are_label_names(folder: Path) -> None:
    read = task(folder).read()
    rows = [
        Row("Refund: Give me my money\nKind:", "billing"),
        Row("Hi: It does not start\nKind:", "fault"),
    ]
    assert read.train == rows
    assert read.in_domain == {"eval": [Row("Old: Broken\nKind:", "fault")]}
    assert read.out_of_domain == {"other": rows}
    assert task(folder).labels == ("billing", "fault")


def test_a_task_is_told_by_its_name_and_written_as_it_was_read(folder: Path) -> None:
    made = task(folder)
    adapter: TypeAdapter[Any] = TypeAdapter(Task)
    assert adapter.validate_python(made.model_dump(mode="json")) == made


def test_labels_may_be_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": -1}\n{"text": "b", "label": "1"}\n')
    read = Classification(
        train=path,
        in_domain={"same": path},
        pattern="{text}",
        verbalizer={"-1": ("bad",), "1": ("good",)},
    ).read()
    assert [row.output for row in read.train] == ["-1", "1"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"kind": "bill"},
            "line 1.*'kind' does not hold a label.*'bill'.*'billing', 'fault'.*did you",
        ),
        ({"kind": None}, "'kind' is null: its value is missing; mend: the row has no label"),
        ({"kind": float("nan")}, "'kind' is NaN: its value is missing; mend: the row has no label"),
        ({"kind": ["fault"]}, "got: list"),
        ({"kind": "x" * 900}, r"got: str 'x+\.\.\.x+'; allowed"),
        ({"kind": "fault", "body": None}, "line 1: the field 'body' is null"),
        ({"kind": -1}, "has no label"),
        ({"kind": True}, "bool True"),
        ({"kin": "fault"}, "no field 'kind'.*did you mean 'kin'"),
        ({"kind": "fault", "subjekt": "x"}, "no field 'subject'.*did you mean 'subjekt'"),
    ],
)
def test_a_row_at_fault_is_named(folder: Path, row: dict[str, object], words: str) -> None:
    fields = {"body": "x", "subject": "y", **row}
    if "subjekt" in row:
        del fields["subject"]
    (folder / "train.jsonl").write_text(json.dumps(fields))
    with pytest.raises(FieldError, match=words):
        task(folder).read()


def test_a_whole_number_with_a_point_is_no_label_but_the_label_is_named(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"subject": "x", "body": "y", "kind": 1.0}')
    with pytest.raises(FieldError, match=r"got: float 1\.0; allowed: '0', '1'; .*mean '1'"):
        task(folder, verbalizer={0: "Bill", 1: "Fault"}).read()


def test_only_the_fields_that_are_needed_are_read(folder: Path) -> None:
    broken = pa.array([b"Caf\xe9"], pa.binary()).view(pa.string())
    table = pa.table({name: ["fault"] for name in ("subject", "body", "kind")} | {"note": broken})
    pq.write_table(table, folder / "other.parquet")
    (folder / "train.jsonl").write_text(
        '{"subject": "x", "body": 12.50, "kind": "fault", "id": %s, "note": NaN}\n' % ("1" * 5000)
    )
    (folder / "eval.csv").write_text("subject,,body,kind,note,note,\na,,b,fault,,,\n")
    read = task(folder, unlabelled="other.parquet").read()
    assert read.train == [Row("x: 12.5\nKind:", "fault")]
    assert read.in_domain == {"eval": [Row("a: b\nKind:", "fault")]}
    assert read.out_of_domain == {"other": [Row("fault: fault\nKind:", "fault")]}
    assert read.inputs == [Row("fault: fault\nKind:")]


def test_all_wrong_rows_are_named(folder: Path) -> None:
    lines = [*map(json.dumps, ROWS), '{"subject": NaN, "body": "b", "kind": "fault"}'] * 2
    (folder / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(FieldError, match=r"train.jsonl, line 3: .* NaN: .*\(also wrong: line 6\)"):
        task(folder).read()


def test_a_file_without_rows_and_a_missing_one_are_refused(folder: Path) -> None:
    (folder / "eval.csv").write_text("subject,body,kind\n")
    with pytest.raises(DataFileError, match="'eval' has no rows"):
        task(folder).read()
    with pytest.raises(DataFileError, match="no such file"):
        task(folder, train="gone.csv").read()
    with pytest.raises(DataFileError, match="no such file"):
        task(folder, train="gone.csv").digest()


def test_a_pattern_may_not_tell_the_label(folder: Path) -> None:
    with pytest.raises(FieldError, match=r"'kind'.*must not show its own answer"):
        task(folder, pattern="{body} {kind}").read()


def test_settings_that_cannot_work_are_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match="in both in_domain and out_of_domain"):
        task(folder, in_domain={"other": "eval.csv"})
    with pytest.raises(ValidationError, match="at least 1"):
        task(folder, in_domain={})
    with pytest.raises(ValidationError, match="at least one field"):
        task(folder, pattern="Kind:")


def test_the_digest_follows_content_and_settings_but_not_the_place(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = task(folder).digest()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in folder.iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    assert task(elsewhere).digest() == before
    assert task(folder, pattern="{body}").digest() != before
    assert task(folder, in_domain={"renamed": "eval.csv"}).digest() != before
    (folder / "eval.csv").write_text("subject,body,kind\nNew,Broken,fault\n")
    assert task(folder).digest() != before
