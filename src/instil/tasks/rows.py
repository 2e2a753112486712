"""Rows of a task: reading them from files, and checking them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from instil.errors import DataFileError, DataFormatError, FieldError, OverlapError
from instil.system import files


@dataclass(frozen=True)
class Row:
    """An input and, if it is known, its gold output."""

    input: str
    output: str | None = None


def read_rows(path: Path, *, need_output: bool) -> list[Row]:
    """Reads rows from JSON Lines (.jsonl), CSV with a header (.csv) or Parquet (.parquet).

    Args:
        path: The file. Its fields `input` and `output` are read; other fields are ignored.
        need_output: Whether every row must have an output.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: the file is binary, wrongly encoded or cut off, or a line is malformed.
        FieldError: a row has no `input` or no needed `output`, or the field is empty.
    """
    rows = [_row(fields, where, need_output=need_output) for where, fields in read_fields(path)]
    if not rows:
        raise DataFileError(f"{path} contains no rows", mend="add at least one row")
    return rows


def read_fields(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Reads the rows of a file with fields of any names.

    Args:
        path: JSON Lines (.jsonl), CSV with a header (.csv) or Parquet (.parquet).

    Returns:
        For each row its place (file and line), for error messages, and its fields.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: the file is binary, wrongly encoded or cut off, or a line is malformed.
            This may be raised only during the iteration.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataFormatError(
            f"{path}: files of this type cannot be read",
            got=f"the file extension {path.suffix!r}",
            allowed=", ".join(readers),
            mend="convert the file, or rename it so that its extension matches its content",
        )
    check_file(path)
    return reader(path)


def as_rows(
    rows: Iterable[Row | str | Mapping[str, object]], *, name: str, need_output: bool
) -> list[Row]:
    """Converts `Row`s, mappings with `input` and `output`, or input texts into rows.

    Raises:
        FieldError: a row has no `input` or no needed `output`, or the field is empty.
        DataFileError: there are no rows.
    """
    made = []
    for number, row in enumerate(rows, start=1):
        fields: Mapping[str, object]
        if isinstance(row, Row):
            fields = {"input": row.input, "output": row.output}
        elif isinstance(row, str):
            fields = {"input": row}
        else:
            fields = row
        made.append(_row(fields, f"{name}, row {number}", need_output=need_output))
    if not made:
        raise DataFileError(f"no rows are given for {name}", mend="add at least one row")
    return made


def check_file(path: Path) -> None:
    """Checks that a path is a file and not empty.

    Raises:
        DataFileError: the path is a folder, or the file is missing or empty.
    """
    if path.is_dir():
        raise DataFileError(f"{path} is a folder", allowed="a file")
    if not path.exists():
        raise DataFileError(f"{path}: no such file", mend="check the path")
    if path.stat().st_size == 0:
        raise DataFileError(f"{path} is empty", mend="check the program that wrote it")


def read_text(path: Path) -> str:
    """Reads a text file as UTF-8, with or without a byte order mark.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: the file is binary or not UTF-8.
    """
    check_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataFileError(f"{path} cannot be read", got=error.strerror or str(error)) from None
    if b"\x00" in data:
        line = data[: data.index(b"\x00")].count(b"\n") + 1
        raise DataFormatError(
            f"{path} is not UTF-8 text: it is binary or UTF-16",
            got=f"a zero byte in line {line}",
            allowed="UTF-8 text",
            mend="save it as UTF-8 text",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataFormatError(
            f"{path}, line {line}: the text is not UTF-8",
            got=f"byte 0x{data[error.start]:02x}",
            allowed="UTF-8",
            mend=f"convert it, for example: iconv -f latin1 -t utf-8 {path.name}",
        ) from None


def check_characters(text: str, what: str) -> None:
    """Checks that a tokenizer can read a text.

    Args:
        text: The text.
        what: What the text is, for the error message.

    Raises:
        DataFormatError: the text contains a lone surrogate (half a character).
    """
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataFormatError(
            f"{what} contains half a character",
            got="a lone surrogate, for example from an emoji that was cut in two",
            mend="correct the text",
        )


def check_overlap(
    evaluation: Sequence[Row], others: Mapping[str, Sequence[Row]], *, allow: bool
) -> None:
    """Checks that the student and the teacher have not seen the evaluation rows.

    Inputs are compared without case and white space.

    Args:
        evaluation: The held-out rows.
        others: Name -> rows that must not contain an evaluation row.
        allow: Skip the check.

    Raises:
        OverlapError: the message has the first such row and the number of such rows.
    """
    if allow:
        return
    for name, rows in others.items():
        seen = {key(row) for row in rows}
        leaks = [number for number, row in enumerate(evaluation, start=1) if key(row) in seen]
        if leaks:
            raise OverlapError(
                f"{len(leaks)} of {len(evaluation)} evaluation rows are also among the {name}",
                got=f"evaluation row {leaks[0]}: {evaluation[leaks[0] - 1].input!r}",
                mend="remove them from one of the two, or pass --allow-overlap to evaluate on them anyway",
            )


def digest(rows: Iterable[Row]) -> str:
    """A SHA-256 of the rows in their order."""
    return files.digest([[row.input, row.output] for row in rows])


def key(row: Row) -> str:
    """A row's input without case and extra white space; equal for rows with the same input."""
    return " ".join(row.input.casefold().split())


def _row(fields: Mapping[str, object], where: str, *, need_output: bool) -> Row:
    values: dict[str, str] = {}
    for field in ("input", "output"):
        value = fields.get(field)
        if value is None and not (field == "input" or need_output):
            continue
        if value is None:
            raise FieldError(
                f"{where}: there is no field {field!r}",
                got=f"fields {', '.join(map(repr, fields)) or 'none'}",
                allowed='{"input": "…", "output": "…"}' if need_output else '{"input": "…"}',
                mend="rename or add the field",
            )
        if not isinstance(value, str):
            raise FieldError(
                f"{where}: the field {field!r} is not text",
                got=f"{type(value).__name__} {value!r}",
                allowed="a string",
                mend="put it in quotation marks",
            )
        if not value.strip():
            if field == "output" and not need_output:  # an empty cell of a CSV
                continue
            raise FieldError(
                f"{where}: the field {field!r} is empty", mend="fill it or delete the row"
            )
        check_characters(value, f"{where}: the field {field!r}")
        values[field] = value
    return Row(values["input"], values.get("output"))


def _read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    text = read_text(path)
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            cut = number == len(lines) and not text.endswith("\n")
            raise DataFormatError(
                f"{where}: the line is not a JSON object",
                got=f"{error.msg} at column {error.colno}",
                allowed='one JSON object per line, such as {"input": "…", "output": "…"}',
                mend="the file seems to be cut off here; create it again"
                if cut
                else "correct the line",
            ) from None
        if not isinstance(fields, dict):
            raise DataFormatError(
                f"{where}: the line is not a JSON object",
                got=type(fields).__name__,
                allowed='one JSON object per line, such as {"input": "…", "output": "…"}',
                mend="correct the line",
            )
        yield where, fields


def _read_csv(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            where = f"{path}, line {line + 1}"
            line = reader.line_num
            if None in fields or None in fields.values():
                raise DataFormatError(
                    f"{where}: the number of cells differs from the header's",
                    allowed=f"{len(reader.fieldnames or [])} cells",
                    mend="put cells with commas in quotation marks; in the last line, the file may be cut off",
                )
            yield where, fields
    except csv.Error as error:
        raise DataFormatError(
            f"{path}, line {line + 1}: malformed CSV",
            got=str(error),
            mend="close the quotation mark; if none is open, the file may be cut off",
        ) from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataFormatError(
            f"{path}: not a complete Parquet file",
            got=str(error).splitlines()[0],
            mend="the file may be cut off; create it again",
        ) from None
    for number, fields in enumerate(table.to_pylist(), start=1):
        yield f"{path}, row {number}", fields
