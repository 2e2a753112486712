"""Records in files: each format, what is ignored, and what is refused."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instil.errors import DataFileError, DataFormatError, FieldError
from instil.tasks.formats import read_fields
from instil.tasks.records import Fields, is_missing, needed, shown, with_fields


def records(path: Path, content: str) -> list[Fields]:
    path.write_text(content, encoding="utf-8", newline="")
    return [fields for _, fields in read_fields(path)]


def refusal(path: Path, content: str) -> str:
    """The message of the error that a content gives."""
    with pytest.raises(DataFormatError) as caught:
        records(path, content)
    assert str(path) in str(caught.value)
    assert caught.value.mend
    return str(caught.value)


def parquet(path: Path, **columns: Any) -> list[tuple[str, Fields]]:
    pq.write_table(pa.table(columns), path)
    return list(read_fields(path))


def not_utf8() -> pa.Array:
    return pa.array([b"Tee", b"Caf\xe9 crema"], pa.binary()).view(pa.string())


def test_fields_are_read_whatever_they_are_called(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 1}\n\n{"other": null}\n')
    assert list(read_fields(path)) == [
        (f"{path}, line 1", {"text": "a", "label": 1}),
        (f"{path}, line 3", {"other": None}),
    ]
    with pytest.raises(DataFileError, match="no such file"):
        read_fields(tmp_path / "gone.jsonl")
    with pytest.raises(DataFileError, match="is a folder"):
        read_fields(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.jsonl.zip", r"'.zip'; allowed: \.jsonl, \.ndjson, \.json, .* mend: unpack it"),
        ("x.xlsx", "'.xlsx'.*save the sheet as CSV"),
        ("x", "''.*its extension matches its content"),
    ],
)
def test_a_type_that_is_not_read_is_told_with_a_way(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(DataFormatError, match=words):
        read_fields(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", '[{"a": 1, "b": "é"}, {"a": 2, "b": null}]'),
        ("x.json", '{"version": 3, "data": [{"a": 1, "b": "é"}, {"a": 2, "b": null}]}'),
        ("x.json", '{"a": 1, "b": "é"}\n{"a": 2, "b": null}\n'),
        ("x.ndjson", '{"a": 1, "b": "é"}\n{"a": 2, "b": null}\n'),
    ],
)
def test_json_may_have_any_usual_form(tmp_path: Path, name: str, text: str) -> None:
    assert records(tmp_path / name, text) == [{"a": 1, "b": "é"}, {"a": 2, "b": None}]


def test_one_object_is_one_record(tmp_path: Path) -> None:
    text = json.dumps({"messages": [{"role": "user", "content": "x"}]})
    assert len(records(tmp_path / "x.json", text)) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [("[1, 2]", "not a list of objects; got: list"), ('[{"a": 1', "not JSON; got: .*line 1")],
)
def test_json_that_holds_no_records_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataFormatError, match=words):
        records(tmp_path / "x.json", text)


def test_tabs_separate_the_cells_of_a_tsv(tmp_path: Path) -> None:
    assert records(tmp_path / "x.tsv", 'a\tb\n1\t"2, 3"\n') == [{"a": "1", "b": "2, 3"}]


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_is_read_as_a_file_and_as_a_stream(tmp_path: Path, stream: bool) -> None:
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    path = tmp_path / "x.arrow"
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)
    assert [dict(fields) for _, fields in read_fields(path)] == table.to_pylist()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataFormatError, match="not a complete Arrow file"):
        list(read_fields(path))


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_packed_files_are_unpacked(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x.jsonl.gz" if kind == "gzip" else "x.jsonl.zst")
    with pa.output_stream(str(path), compression=kind) as sink:
        sink.write(b'{"a": 1}\r\n{"a": 2}\n')
    assert [dict(fields) for _, fields in read_fields(path)] == [{"a": 1}, {"a": 2}]
    path.write_bytes(path.read_bytes()[:12])
    with pytest.raises(DataFormatError, match="cannot be unpacked"):
        list(read_fields(path))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_any_way(tmp_path: Path, end: str) -> None:
    expected = [{"a": "1\u2028\u0085\u2029", "b": "2"}, {"a": "3", "b": "4"}]
    lines = ['{"a": "1\u2028\u0085\u2029", "b": "2"}', '{"a": "3", "b": "4"}']
    assert records(tmp_path / "x.jsonl", end.join(lines)) == expected
    lines = ["a,b", "1\u2028\u0085\u2029,2", "3,4"]
    assert records(tmp_path / "x.csv", end.join(lines) + end) == expected


def test_a_cell_of_a_csv_keeps_its_line_ends(tmp_path: Path) -> None:
    assert records(tmp_path / "x.csv", 'a,b\r\n"1\r\n2\n3",4\r\n')[0]["a"] == "1\r\n2\n3"


def test_byte_order_marks_of_joined_files_are_passed_over(tmp_path: Path) -> None:
    line = '\ufeff{"a": "1"}\n'
    assert records(tmp_path / "x.jsonl", line + line + "\ufeff\n") == [{"a": "1"}] * 2
    assert records(tmp_path / "x.csv", '\ufeff\ufeff"a",b\n1,2\n') == [{"a": "1", "b": "2"}]


def test_a_number_of_any_length_is_read_and_an_ignored_one_does_no_harm(tmp_path: Path) -> None:
    digits = "1" * 5000
    (fields,) = records(tmp_path / "x.jsonl", f'{{"id": {digits}, "a": -7, "b": 1e999}}')
    assert fields == {"id": Decimal(digits), "a": -7, "b": float("inf")}


def test_a_name_that_occurs_twice_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    columns = pa.table([pa.array(["1"])] * 3, names=["a", "a", "b"])
    pq.write_table(columns, tmp_path / "x.parquet")
    for name, content in {
        "x.jsonl": '{"a": "1", "a": "2", "b": "1"}',
        "x.csv": "a,a,b\n1,2,1\n",
        "x.parquet": "",
    }.items():
        path = tmp_path / name
        if content:
            path.write_text(content)
        ((_, fields),) = read_fields(path)
        assert fields["b"] == "1"
        assert list(fields) == ["a", "b"]
        assert len(fields) == 2
        assert "a" in fields
        with pytest.raises(FieldError, match=f"{name}, .* 'a' occurs 2 times; mend: rename"):
            fields["a"]
        with pytest.raises(KeyError):
            fields["c"]


def test_a_name_that_occurs_twice_within_a_field_does_no_harm(tmp_path: Path) -> None:
    (fields,) = records(tmp_path / "x.jsonl", '{"a": {"b": 1, "b": 2}, "b": 3}')
    assert fields == {"a": {"b": 2}, "b": 3}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000 + "]" * 100_000, "line 1: the JSON object is nested too deeply"),
        ('{"a": ' + "[" * 100_000, "line 1: the JSON object is nested too deeply"),
        ('[{"a": 1}]', "line 1: the line is not a JSON object; got: list"),
        ('[{"a": 1}]', "mend: write the objects of the list one per line"),
        ('[\n{"a": 1},\n', "mend: write the objects of the list one per line"),
        ('{\n "a": 1\n}\n', "mend: write each object on one line"),
        ('{"a": 1}\n"text"\n', "line 2: the line is not a JSON object; got: str"),
        ('{"a": 1},\n{"a": 1}\n', "line 1: the line is not a JSON object; got: Extra data"),
        ('{"a": 1}\n\n{"a"', "line 3: the line is not a JSON object; got: Expecting ':'"),
        ('{"a": "\t"}\n', "Invalid control character"),
    ],
)
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, content: str, words: str) -> None:
    assert words in refusal(tmp_path / "x.jsonl", content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a;b\nGuten Tag, Welt;2\n", "line 1: the cells are separated by semicolons; got: 'a;b'"),
        ("sep=;\na;b\n1;2\n", "line 1: the cells are separated by semicolons; got: 'sep=;'"),
        ("a\tb\n1\t2\n", "line 1: the cells are separated by tabs"),
        ("a|b\n1|2\n", "line 1: the cells are separated by vertical bars"),
        ("a,b\n1,2,3\n", "line 2: the number of cells differs from the header's; got: 3"),
        ("a,b\n1,2,,\n", "remove the commas at the end of the line"),
        ("a,b\n1\n", "line 2: the number of cells differs from the header's; got: 1; allowed: 2"),
        ('a,b\n\n"x\ny",2\n\n1\n', "line 6: the number of cells"),
        ('a,b\n"x\ny",2\n"say "hi"",2\n', "line 4: malformed CSV"),
        ('a,b\n"x,2\n', "line 2: malformed CSV; got: unexpected end of data"),
        ("a,b\n1,2\na,b\n3,4\n", "line 3: the header occurs again"),
        ("a\n1\n\ufeffa\n3\n", "line 3: the header occurs again"),
    ],
)
def test_a_csv_that_is_wrong_is_refused(tmp_path: Path, content: str, words: str) -> None:
    assert words in refusal(tmp_path / "x.csv", content)


def test_a_csv_may_hold_what_looks_like_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    assert records(path, "\n\na\n\na\nb;c\n\ufeffd\n") == [
        {"a": "a"},
        {"a": "b;c"},
        {"a": "\ufeffd"},
    ]
    assert records(path, '"a;b",,c,\n1,2,3,4\n')[0]["a;b"] == "1"
    assert [where for where, _ in read_fields(path)] == [f"{path}, line 2"]


def test_text_in_parquet_that_is_not_utf_8_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    _, (where, fields) = parquet(path, input=not_utf8(), other=["a", "b"])
    assert (where, fields["other"]) == (f"{path}, row 2", "b")
    with pytest.raises(
        DataFormatError, match=r"row 2: the text in the column 'input' is not UTF-8; got: byte 0xe9"
    ):
        fields["input"]


def test_a_value_in_parquet_that_python_cannot_hold_is_refused(tmp_path: Path) -> None:
    times = pa.array([2**62], pa.timestamp("us"))
    ((_, fields),) = parquet(tmp_path / "x.parquet", time=times, text=["a"])
    assert fields["text"] == "a"
    with pytest.raises(DataFormatError, match="row 1: the value in the column 'time' cannot be"):
        fields["time"]


def test_values_of_all_types_of_parquet_are_read(tmp_path: Path) -> None:
    text = pa.array(["a", None])
    writes_views = int(pa.__version__.partition(".")[0]) >= 21
    columns = {
        "large": text.cast(pa.large_string()),
        "view": text.cast(pa.string_view()) if writes_views else text,
        "category": text.dictionary_encode(),
        "decimal": pa.array([Decimal("1.50"), None]),
        "day": pa.array([datetime.date(2020, 1, 2), None]),
        "list": pa.array([["a"], None]),
        "large.part": pa.array([1, None]),  # a dot in a name is no nested column
    }
    (_, first), (_, second) = parquet(tmp_path / "x.parquet", **columns)
    assert first == {
        "large": "a",
        "view": "a",
        "category": "a",
        "decimal": Decimal("1.50"),
        "day": datetime.date(2020, 1, 2),
        "list": ["a"],
        "large.part": 1,
    }
    assert second == dict.fromkeys(columns)


def test_a_damaged_column_of_parquet_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": ["x" * 50] * 3, "b": ["y"] * 3}), path, compression="none")
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36  # the first page of the first column
    path.write_bytes(bytes(data))
    ((_, fields), *_) = read_fields(path)
    assert fields["b"] == "y"
    with pytest.raises(DataFormatError, match=r"x\.parquet: the column 'a' cannot be read; got: "):
        fields["a"]


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "not a complete Parquet file" in refusal(tmp_path / "x.parquet", '{"input": "a"}\n')


def test_fields_may_be_added_or_replaced() -> None:
    assert with_fields({"a": 1, "b": 2}, {"b": 3, "c": 4}) == {"a": 1, "b": 3, "c": 4}


def test_a_needed_field_has_a_value() -> None:
    assert needed({"a": 0}, "a", "row 1") == 0
    with pytest.raises(
        FieldError, match="row 1: there is no field 'a', the label; got: fields 'b'"
    ):
        needed({"b": 0}, "a", "row 1", role=", the label")
    for value, name in ((None, "null"), (float("nan"), "NaN")):
        assert is_missing(value)
        with pytest.raises(
            FieldError, match=f"row 1: the field 'a' is {name}: its value is missing; mend: do so"
        ):
            needed({"a": value}, "a", "row 1", fill="do so")
    assert not any(map(is_missing, ("", 0, False, "nan", float("inf"))))


def test_a_value_is_shown_briefly() -> None:
    assert (shown(5), shown("x"), shown(None)) == ("int 5", "str 'x'", "NoneType None")
    assert len(shown("x" * 1000)) < 100
    assert shown(10**5000) == "int of several thousand digits"
