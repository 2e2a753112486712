from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.errors import DataFileError, DataFormatError, FieldError, InstilError, OverlapError
from instil.tasks.rows import Row, as_rows, check_overlap, read_fields, read_rows

GOOD = [
    {"input": "apple", "output": "apples"},
    {"input": "Ümläut, “quoted”", "output": "naïve\u2028line"},
]
ROWS = [Row(**row) for row in GOOD]


def test_the_three_formats_hold_the_same_rows(tmp_path: Path) -> None:
    jsonl, csv, parquet = (tmp_path / f"rows.{kind}" for kind in ("jsonl", "csv", "parquet"))
    jsonl.write_text("\n".join(map(json.dumps, GOOD)), encoding="utf-8")
    csv.write_text(
        'output,input,other\napples,apple,1\nnaïve\u2028line,"Ümläut, “quoted”",2\n',
        encoding="utf-8-sig",
    )
    pq.write_table(pa.Table.from_pylist(GOOD), parquet)
    assert read_rows(jsonl, need_output=True) == ROWS
    assert read_rows(parquet, need_output=True) == ROWS
    assert [row.input for row in read_rows(csv, need_output=True)] == [row.input for row in ROWS]


def test_a_csv_cell_may_hold_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('input,output\n"two\nlines",x\nnext,y\n')
    assert read_rows(path, need_output=True) == [Row("two\nlines", "x"), Row("next", "y")]


def test_inputs_may_lack_outputs(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("input,output\na,\nb,c\n")
    assert read_rows(path, need_output=False) == [Row("a"), Row("b", "c")]


BAD_FILES = {
    "empty": ("x.jsonl", b"", DataFileError, "empty"),
    "only blank lines": ("x.jsonl", b"\n \n", DataFileError, "no rows"),
    "header only": ("x.csv", b"input,output\n", DataFileError, "no rows"),
    "binary": ("x.jsonl", b"\x89PNG\x00\x01", DataFormatError, "binary"),
    "latin-1": (
        "x.jsonl",
        b'{"input": "a", "output": "b"}\n{"input": "caf\xe9"}\n',
        DataFormatError,
        "line 2",
    ),
    "malformed line": (
        "x.jsonl",
        b'{"input": "a", "output": "b"}\nnonsense\n{}\n',
        DataFormatError,
        "line 2",
    ),
    "cut off": (
        "x.jsonl",
        b'{"input": "a", "output": "b"}\n{"input": "c", "out',
        DataFormatError,
        "cut off",
    ),
    "not an object": ("x.jsonl", b'["a", "b"]\n', DataFormatError, "list"),
    "open quote": ("x.csv", b'input,output\na,b\n"c,d\n', DataFormatError, "line 3"),
    "missing cell": ("x.csv", b"input,output\na,b\nc\n", DataFormatError, "line 3"),
    "cut parquet": ("x.parquet", b"PAR1 and then nothing", DataFormatError, "Parquet"),
    "unknown ending": ("x.xlsx", b"anything", DataFormatError, ".jsonl, .csv, .parquet"),
    "missing field": (
        "x.jsonl",
        b'{"input": "a", "output": "b"}\n{"input": "c"}\n',
        FieldError,
        "line 2",
    ),
    "misnamed field": ("x.csv", b"question,answer\na,b\n", FieldError, "'question', 'answer'"),
    "empty field": ("x.jsonl", b'{"input": " ", "output": "b"}\n', FieldError, "'input' is empty"),
    "half an emoji": (
        "x.jsonl",
        b'{"input": "a", "output": "\\ud83d"}\n',
        DataFormatError,
        "half a character",
    ),
    "number for text": ("x.jsonl", b'{"input": "a", "output": 5}\n', FieldError, "int 5"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_place_and_a_mend(tmp_path: Path, case: str) -> None:
    name, content, error, words = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read_rows(path, need_output=True)
    assert words in str(caught.value)
    assert name in str(caught.value)
    assert "mend: " in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="no such file"):
        read_rows(tmp_path / "gone.jsonl", need_output=True)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataFileError, match="is a folder"):
        read_rows(tmp_path / "folder.jsonl", need_output=True)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_but_never_crash(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for ending in ("jsonl", "csv", "parquet"):
        path = folder / f"x.{ending}"
        path.write_bytes(data)
        try:
            rows = read_rows(path, need_output=True)
        except InstilError:
            continue
        assert all(row.input.strip() and row.output for row in rows)


def test_what_a_caller_passes_becomes_rows() -> None:
    assert as_rows(["a", {"input": "b"}, Row("c", "d")], name="inputs", need_output=False) == [
        Row("a"),
        Row("b"),
        Row("c", "d"),
    ]
    with pytest.raises(FieldError, match="inputs, row 2"):
        as_rows([{"input": "a", "output": "b"}, "c"], name="inputs", need_output=True)
    with pytest.raises(DataFileError, match="no rows"):
        as_rows([], name="inputs", need_output=False)


def test_a_leak_is_found_whatever_case_and_space_and_can_be_allowed() -> None:
    held_out = [Row("new", "x"), Row("Seen  before", "y")]
    with pytest.raises(
        OverlapError, match=r"1 of 2 evaluation rows are also among the demonstrations.*row 2"
    ):
        check_overlap(held_out, {"demonstrations": [Row("seen before")]}, allow=False)
    check_overlap(held_out, {"demonstrations": [Row("seen before")]}, allow=True)
    check_overlap(held_out, {"inputs": [Row("other")]}, allow=False)


def test_fields_are_read_whatever_they_are_called(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 1}\n\n{"other": null}\n')
    assert list(read_fields(path)) == [
        (f"{path}, line 1", {"text": "a", "label": 1}),
        (f"{path}, line 3", {"other": None}),
    ]
    with pytest.raises(DataFileError, match="no such file"):
        read_fields(tmp_path / "gone.jsonl")
