"""Reads records from files of several formats."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from instil.errors import DataFormatError
from instil.tasks.records import Record, Records
from instil.tasks.text_files import (
    PACKED,
    check_file,
    lines_of,
    read_bytes,
    read_exact_text,
    read_text,
)

_CONVERSIONS = {
    ".zip": "unpack it",
    ".xlsx": "save the sheet as CSV in UTF-8",
}
"""Extension of a file that is not read -> how to get a file that is."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_OBJECTS = 'one JSON object per line, such as {"input": "…", "output": "…"}'


def read_fields(path: Path) -> Records:
    """Reads the records of a file.

    Args:
        path: JSON Lines (.jsonl, .ndjson), a JSON list (.json), CSV or TSV with a header, Parquet or
            Arrow (.arrow, .feather). A text file may be packed (.gz, .zst).

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: the file is binary, wrongly encoded or cut off, or a line is malformed.
            This may be raised only during the iteration, or when a field is looked up.
    """
    check_file(path)
    extension = extension_of(path)
    reader = READERS.get(extension)
    if reader is None:
        raise DataFormatError(
            f"{path}: files of this type cannot be read",
            got=f"the file extension {path.suffix!r}",
            allowed=", ".join(READERS),
            mend=_CONVERSIONS.get(
                extension,
                "convert the file, or rename it so that its extension matches its content",
            ),
        )
    return reader(path)


def extension_of(path: Path) -> str:
    """The extension that says how a file is read, without that of its packing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in PACKED:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def _read_jsonl(path: Path) -> Records:
    for number, line, last in lines_of(path):
        line = line.lstrip("\ufeff")  # files that were joined have byte order marks inside
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            names, values = _json_object(line)
        except json.JSONDecodeError as error:
            cut = last
            raise DataFormatError(
                f"{where}: the line is not a JSON object",
                got=f"{error.msg} at column {error.colno}",
                allowed=_OBJECTS,
                mend=_over_several_lines(line)
                or ("the file seems to be cut off here; create it again" if cut else "")
                or "correct the line",
            ) from None
        except RecursionError:
            raise DataFormatError(
                f"{where}: the JSON object is nested too deeply to be read",
                allowed=_OBJECTS,
                mend="remove the field that is nested so deeply",
            ) from None
        except TypeError as error:
            raise DataFormatError(
                f"{where}: the line is not a JSON object",
                got=str(error),
                allowed=_OBJECTS,
                mend=_over_several_lines(line) or "correct the line",
            ) from None
        yield where, Record(where, _places(names), values.__getitem__)


def _json_object(line: str) -> tuple[list[str], list[object]]:
    """The names and values of an object; a name may occur several times.

    Raises:
        JSONDecodeError: the line is not JSON.
        RecursionError: it is nested too deeply.
        TypeError: it is not an object. The message is its type.
    """
    outermost: list[tuple[str, object]] = []

    def made(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal outermost
        outermost = pairs  # the outermost object is made last
        return dict(pairs)

    value = json.loads(line, object_pairs_hook=made, parse_int=_integer)
    if not isinstance(value, dict):
        raise TypeError(type(value).__name__)
    return [name for name, _ in outermost], [value for _, value in outermost]


def _integer(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:  # Python reads at most 4,300 digits as an integer
        return Decimal(digits)


def _over_several_lines(line: str) -> str:
    """The mend if this line begins an indented object or a list of objects; else empty."""
    if line.lstrip().startswith("["):
        return "write the objects of the list one per line, without its brackets and commas"
    return "write each object on one line" if line.strip() == "{" else ""


def _read_json(path: Path) -> Records:
    """A list of objects, alone or as the only list of an object; or one object; or JSON Lines."""
    text = read_text(path).lstrip("\ufeff")
    try:
        found = json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip()[:1] == "{":
            yield from _read_jsonl(path)
            return
        raise DataFormatError(
            f"{path}: the file is not JSON",
            got=f"{error.msg} at line {error.lineno}, column {error.colno}",
            allowed="a list of objects",
            mend="correct it; if it ends here, the file may be cut off",
        ) from None
    except RecursionError:
        raise DataFormatError(
            f"{path}: the JSON is nested too deeply to be read", allowed="a list of objects"
        ) from None
    if isinstance(found, dict):
        lists = [value for value in found.values() if _are_objects(value)]
        known = {"messages", "conversations", "prompt", "request", "input"} & set(found)
        found = lists[0] if len(lists) == 1 and not known else [found]
    if not _are_objects(found):
        raise DataFormatError(
            f"{path}: the file is not a list of objects",
            got=type(found).__name__,
            allowed='[{"input": "…", "output": "…"}, …]',
            mend="write one object per row",
        )
    for number, fields in enumerate(found, 1):
        yield f"{path}, row {number}", Record("", _places(fields), [*fields.values()].__getitem__)


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _read_arrow(path: Path) -> Records:
    """A file or a stream of Arrow record batches, as `datasets` and pandas write them."""
    import pyarrow as pa

    data = pa.BufferReader(read_bytes(path))
    try:
        table = pa.ipc.open_file(data).read_all()
    except Exception:  # pyarrow raises many kinds
        try:
            data.seek(0)
            table = pa.ipc.open_stream(data).read_all()
        except Exception as error:
            raise _damaged(f"{path}: not a complete Arrow file", error) from None
    places = _places(table.column_names)
    for number in range(table.num_rows):
        where = f"{path}, row {number + 1}"
        cell = partial(_arrow_cell, table, where, number)
        yield where, Record(where, places, cell)


def _arrow_cell(table: Any, where: str, row: int, column: int) -> object:
    try:
        return table.column(column)[row].as_py()
    except Exception as error:  # text that is not UTF-8, a date out of range, …
        raise DataFormatError(
            f"{where}: the value in the column {table.column_names[column]!r} cannot be read",
            got=_first_line(error),
            mend="write the column again, as text in UTF-8",
        ) from None


def _read_tsv(path: Path) -> Records:
    return _read_csv(path, "\t")


def _read_csv(path: Path, separator: str = ",") -> Records:
    csv.field_size_limit(2**31 - 1)
    text = read_exact_text(path).lstrip("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    line = 0  # the last one that was read
    try:
        for cells in reader:
            where, line = f"{path}, line {line + 1}", reader.line_num
            if not cells:
                continue
            if not header:
                header = cells
                if separator == ",":
                    _check_separator(header, where)
                places = _places(header)
                continue
            _check_cells(cells, header, where)
            yield where, Record(where, places, cells.__getitem__)
    except csv.Error as error:
        raise DataFormatError(
            f"{path}, line {line + 1}: malformed CSV",
            got=str(error),
            mend="close the quotation mark, and write those inside a cell twice; if none is open, "
            "the file may be cut off",
        ) from None


def _check_separator(header: list[str], where: str) -> None:
    """Refuses a header with one cell that contains another separator than the comma."""
    for mark, name in _SEPARATORS.items():
        if len(header) == 1 and mark in header[0]:
            raise DataFormatError(
                f"{where}: the cells are separated by {name}",
                got=repr(header[0]),
                allowed="commas",
                mend="save the file with commas as separators; put cells that contain commas in "
                "quotation marks",
            )


def _check_cells(cells: list[str], header: list[str], where: str) -> None:
    """Refuses a line that has too many or too few cells, or is the header again."""
    if len(cells) != len(header):
        more = cells[len(header) :]
        raise DataFormatError(
            f"{where}: the number of cells differs from the header's",
            got=str(len(cells)),
            allowed=f"{len(header)} cells",
            mend="remove the commas at the end of the line"
            if more and not any(more)
            else "put cells with commas in quotation marks; "
            "in the last line, the file may be cut off",
        )
    again = [cells[0].removeprefix("\ufeff"), *cells[1:]]
    if again == header and (len(header) > 1 or again != cells):
        raise DataFormatError(
            f"{where}: the header occurs again",
            mend="delete this line; the file seems to be made of several files",
        )


def _read_parquet(path: Path) -> Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = read_bytes(path)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names, count = file.schema_arrow.names, file.metadata.num_rows
    except Exception as error:  # pyarrow raises many kinds
        raise _damaged(f"{path}: not a complete Parquet file", error) from None
    places, columns = _places(names), _Columns(path, file, names)
    for number in range(count):
        where = f"{path}, row {number + 1}"
        yield where, Record(where, places, partial(columns.cell, number))


def _damaged(what: str, error: Exception) -> DataFormatError:
    return DataFormatError(
        what,
        got=_first_line(error),
        mend="the file may be cut off, or be of another type; create it again",
    )


class _Columns:
    """The columns of a Parquet file. One is read when its first cell is asked for."""

    def __init__(self, path: Path, file: Any, names: list[str]) -> None:
        self._path, self._file, self._names = path, file, names
        self._read: dict[int, Any] = {}

    def cell(self, row: int, column: int) -> object:
        name = self._names[column]
        if column not in self._read:
            try:
                # A name without a dot would also read a nested column whose name begins so.
                self._read[column] = self._file.read(columns=[name]).column(name)
            except Exception as error:  # pyarrow raises many kinds
                raise _damaged(f"{self._path}: the column {name!r} cannot be read", error) from None
        try:
            return self._read[column][row].as_py()
        except UnicodeDecodeError as error:
            raise DataFormatError(
                f"{self._path}, row {row + 1}: the text in the column {name!r} is not UTF-8",
                got=f"byte 0x{error.object[error.start]:02x}",
                allowed="UTF-8",
                mend="write the file again, from text in UTF-8",
            ) from None
        except Exception as error:  # a date out of range, an unknown time zone, …
            raise DataFormatError(
                f"{self._path}, row {row + 1}: the value in the column {name!r} cannot be read",
                got=_first_line(error),
                mend="save the column as text",
            ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    """Name -> its columns."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        places[name].append(place)
    return dict(places)


READERS = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}
"""Extension -> what reads such a file."""
