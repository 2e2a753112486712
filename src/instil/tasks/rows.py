"""Rows of a task: an input, and the output that is wanted of it. Reading them from files and checking them."""

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
    """One input and, where it is known, its gold output."""

    input: str
    output: str | None = None


def read_rows(path: Path, *, need_output: bool) -> list[Row]:
    """Reads rows from JSON Lines (.jsonl), CSV with a header (.csv) or Parquet (.parquet).

    Args:
        path: The file; its fields are `input` and `output`, others are ignored.
        need_output: Whether every row must have an output.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: it is binary, mis-encoded or truncated, or a line is malformed.
        FieldError: a row lacks a field, or the field is empty.
    """
    rows = [_row(fields, where, need_output=need_output) for where, fields in read_fields(path)]
    if not rows:
        raise DataFileError(f"{path} has no rows", mend="add at least one row")
    return rows


def read_fields(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Reads what the rows of a file hold, whatever their fields are called.

    Args:
        path: JSON Lines (.jsonl), CSV with a header (.csv) or Parquet (.parquet).

    Returns:
        Of each row where it stands, for messages, and its fields; a file without rows gives none.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: it is binary, mis-encoded or truncated, or, while it is read, a line is malformed.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataFormatError(
            f"{path}: unknown kind of file",
            got=f"ending {path.suffix!r}",
            allowed=", ".join(readers),
            mend="convert the file, or give it the ending of what it holds",
        )
    check_file(path)
    return reader(path)


def as_rows(
    rows: Iterable[Row | str | Mapping[str, object]], *, name: str, need_output: bool
) -> list[Row]:
    """Turns what a caller passes into rows: `Row`s, mappings with `input` and `output`, or bare inputs.

    Raises:
        FieldError: a row lacks a field, or the field is empty.
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
        raise DataFileError(f"{name}: no rows", mend="add at least one row")
    return made


def check_file(path: Path) -> None:
    """Refuses a path that is no file, or an empty file.

    Raises:
        DataFileError: with the reason.
    """
    if path.is_dir():
        raise DataFileError(f"{path} is a folder", allowed="a file")
    if not path.exists():
        raise DataFileError(f"{path}: no such file", mend="check the path")
    if path.stat().st_size == 0:
        raise DataFileError(f"{path} is empty", mend="check what wrote it")


def read_text(path: Path) -> str:
    """Reads a text file as UTF-8, with or without a byte order mark.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: it is binary or not UTF-8.
    """
    check_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataFileError(f"{path} cannot be read", got=error.strerror or str(error)) from None
    if b"\x00" in data:
        line = data[: data.index(b"\x00")].count(b"\n") + 1
        raise DataFormatError(
            f"{path} is binary or in UTF-16",
            got=f"a zero byte in line {line}",
            allowed="UTF-8 text",
            mend="export it as UTF-8 text",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataFormatError(
            f"{path}, line {line}: not UTF-8",
            got=f"byte 0x{data[error.start]:02x}",
            allowed="UTF-8",
            mend=f"convert it, for example: iconv -f latin1 -t utf-8 {path.name}",
        ) from None


def check_characters(text: str, what: str) -> None:
    """Refuses text that no tokenizer reads.

    Args:
        text: The text.
        what: What it is, for the message.

    Raises:
        DataFormatError: it holds half a character.
    """
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataFormatError(
            f"{what} holds half a character",
            got="a lone surrogate, as a cut emoji leaves it",
            mend="write the row again",
        )


def check_overlap(
    evaluation: Sequence[Row], others: Mapping[str, Sequence[Row]], *, allow: bool
) -> None:
    """Refuses evaluation rows that the student or the teacher has seen.

    Inputs are compared without regard to case and white space.

    Args:
        evaluation: The held-out rows.
        others: Name -> rows that must not hold any of them.
        allow: Let it pass.

    Raises:
        OverlapError: names the first such row and how many there are.
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
                mend="remove them from one side, or pass --allow-overlap to count them all the same",
            )


def digest(rows: Iterable[Row]) -> str:
    """A SHA-256 over the rows in their order."""
    return files.digest([[row.input, row.output] for row in rows])


def key(row: Row) -> str:
    """What two rows with the same input have in common, whatever their case and white space."""
    return " ".join(row.input.casefold().split())


def _row(fields: Mapping[str, object], where: str, *, need_output: bool) -> Row:
    values: dict[str, str] = {}
    for field in ("input", "output"):
        value = fields.get(field)
        if value is None and not (field == "input" or need_output):
            continue
        if value is None:
            raise FieldError(
                f"{where}: no field {field!r}",
                got=f"fields {', '.join(map(repr, fields)) or 'none'}",
                allowed='{"input": "…", "output": "…"}' if need_output else '{"input": "…"}',
                mend="rename or add the field",
            )
        if not isinstance(value, str):
            raise FieldError(
                f"{where}: field {field!r} is not text",
                got=f"{type(value).__name__} {value!r}",
                allowed="a string",
                mend="put it in quotation marks",
            )
        if not value.strip():
            if field == "output" and not need_output:  # an empty cell of a CSV
                continue
            raise FieldError(f"{where}: field {field!r} is empty", mend="fill it or drop the row")
        check_characters(value, f"{where}: field {field!r}")
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
                f"{where}: not a JSON object",
                got=f"{error.msg} at column {error.colno}",
                allowed='one JSON object a line, such as {"input": "…", "output": "…"}',
                mend="the file looks cut off here; write it again" if cut else "mend the line",
            ) from None
        if not isinstance(fields, dict):
            raise DataFormatError(
                f"{where}: not a JSON object",
                got=type(fields).__name__,
                allowed='one JSON object a line, such as {"input": "…", "output": "…"}',
                mend="mend the line",
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
                    f"{where}: another number of cells than the header has",
                    allowed=f"{len(reader.fieldnames or [])} cells",
                    mend="quote cells that hold commas; if it is the last line, the file may be cut off",
                )
            yield where, fields
    except csv.Error as error:
        raise DataFormatError(
            f"{path}, line {line + 1}: malformed CSV",
            got=str(error),
            mend="close the quotation mark; if none is open, the file is cut off",
        ) from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataFormatError(
            f"{path}: not a whole Parquet file",
            got=str(error).splitlines()[0],
            mend="the file may be cut off; write it again",
        ) from None
    for number, fields in enumerate(table.to_pylist(), start=1):
        yield f"{path}, row {number}", fields
