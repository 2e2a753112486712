from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.errors import DataFileError, DataFormatError, FieldError, InstilError, OverlapError
from instil.tasks.rows import Row, as_rows, check_overlap, key, make_rows, read_rows

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
    "unknown ending": ("x.xlsx", b"anything", DataFormatError, ".csv, .tsv, .parquet"),
    "missing field": (
        "x.jsonl",
        b'{"input": "a", "output": "b"}\n{"input": "c"}\n',
        FieldError,
        "line 2",
    ),
    "misnamed field": ("x.csv", b"question,answer\na,b\n", FieldError, "'question', 'answer'"),
    "empty field": ("x.jsonl", b'{"input": " ", "output": "b"}\n', FieldError, "'input' is empty"),
    "invisible field": (
        "x.jsonl",
        '{"input": "\u200b \ufeff", "output": "b"}\n'.encode(),
        FieldError,
        "'input' is empty",
    ),
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


def test_a_value_that_is_missing_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"input": "a", "output": "b"}\n{"input": "c", "output": null}\n')
    with pytest.raises(
        FieldError, match="line 2: the field 'output' is null: its value is missing; mend: fill it"
    ):
        read_rows(path, need_output=True)
    path.write_text('{"input": NaN, "output": "b"}\n')
    with pytest.raises(FieldError, match="line 1: the field 'input' is NaN: its value is missing"):
        read_rows(path, need_output=False)
    for missing in ("null", "NaN"):
        path.write_text(f'{{"input": "a", "output": {missing}}}\n')
        assert read_rows(path, need_output=False) == [Row("a")]


def test_other_wrong_rows_are_named_with_the_first_unless_all_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    good, bad = '{"input": "a"}\n', '{"input": null}\n'
    for content, also in (
        (good + bad + good + bad + bad, r"line 2: the field .* \(also wrong: line 4, line 5\);"),
        (bad + good + bad, r"line 1: the field .* \(also wrong: line 3\);"),
        (good + bad * 9, r"also wrong: line 3, line 4, line 5, line 6, line 7\);"),
        (bad * 9, "line 1: the field 'input' is null: its value is missing; mend"),
    ):
        path.write_text(content)
        with pytest.raises(FieldError, match=also):
            read_rows(path, need_output=False)


def test_a_record_may_be_left_out() -> None:
    numbers = ((f"file, line {n}", n) for n in range(4))
    assert make_rows(numbers, lambda n, where: Row(where) if n % 2 else None) == [
        Row("file, line 1"),
        Row("file, line 3"),
    ]


def test_a_path_may_be_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("input\na\n")
    assert read_rows(str(tmp_path / "x.csv"), need_output=False) == [Row("a")]


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


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("inputs.jsonl", r"a list of rows is expected; got: str 'inputs\.jsonl'.*read_rows"),
        (Path("inputs.jsonl"), "a list of rows is expected; got: PosixPath"),
        ({"input": "a"}, "a list of rows is expected; got: dict"),
        (pa.table({"input": ["a"]}), "a list of rows is expected; got: Table"),
        (["a", ("b", "c")], r"inputs, row 2: this is not a row; got: tuple \('b', 'c'\)"),
        (["a", None], "inputs, row 2: this is not a row; got: NoneType None"),
        ([{"input": 10**5000}], "'input' is not text; got: int of several thousand digits"),
        ([{"input": float("nan")}], "inputs, row 1: the field 'input' is NaN"),
        ([{"input": ["x" * 900]}], r"got: list \['x{10,60}\.\.\.x{10,60}'\]"),
    ],
)
def test_what_are_no_rows_is_told(rows: Any, words: str) -> None:
    with pytest.raises(FieldError, match=words):
        as_rows(rows, name="inputs", need_output=False)


def test_a_leak_is_found_whatever_case_and_space_and_can_be_allowed() -> None:
    held_out = [Row("new", "x"), Row("Seen  before", "y")]
    with pytest.raises(
        OverlapError, match=r"1 of 2 evaluation rows are also among the demonstrations.*row 2"
    ):
        check_overlap(held_out, {"demonstrations": [Row("seen before")]}, allow=False)
    check_overlap(held_out, {"demonstrations": [Row("seen before")]}, allow=True)
    check_overlap(held_out, {"inputs": [Row("other")]}, allow=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Caf\u00e9 ", "cafe\u0301"),
        ("\u304c", "\u304b\u3099"),
        ("a\u00a0b", "a b"),
        ("soft\u00adly", "soft\u200bly"),
        ("\ufeffhello", "hello"),
        ("\u202bשלום\u202c", "שלום"),
        ("\u2764\ufe0f", "\u2764"),
        ("\uff26\uff55\uff4c\uff4c, \ufb01ne\u2026", "Full, fine..."),
        ("\uff76\uff9e", "\u30ac"),
        ("Straße", "STRASSE"),
        ("\u0390", "\u03b9\u0308\u0301"),
    ],
    ids=ascii,
)
def test_texts_that_look_the_same_are_one_input(one: str, other: str) -> None:
    assert key(Row(one)) == key(Row(other))
    with pytest.raises(OverlapError, match=r"1 of 1 evaluation rows .*; row 2 of the inputs"):
        check_overlap([Row(one)], {"inputs": [Row("x"), Row(other)]}, allow=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [("10²", "102"), ("H₂O", "H20"), ("1½", "11/2"), ("①②", "12"), ("é", "e"), ("ss", "s s")],
)
def test_texts_that_mean_something_else_are_two_inputs(one: str, other: str) -> None:
    assert key(Row(one)) != key(Row(other))
    check_overlap([Row(one)], {"inputs": [Row(other)]}, allow=False)


def test_a_text_is_never_changed(tmp_path: Path) -> None:
    text = "cafe\u0301\u00a0\u200b \ufb01ne\u2026 "
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"input": text}))
    assert read_rows(path, need_output=False) == [Row(text)]
