"""Reads records, which are rows with fields of any names, from files."""

from __future__ import annotations

import csv
import io
import json
import math
import reprlib
from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast

from instil.errors import DataFormatError, FieldError, did_you_mean
from instil.tasks.text_files import check_file, read_bytes, read_exact_text, read_text

Fields = Mapping[str, object]
"""The fields of a record by name."""
Records = Iterator[tuple[str, Fields]]
"""For each record its place (for example file and line), for error messages, and its fields."""

_CONVERSIONS = {
    ".json": "write one object per line into a .jsonl file, for example: jq -c '.[]'",
    ".tsv": "save it as CSV, with commas",
    ".gz": "unpack it, for example with gunzip",
    ".xlsx": "save the sheet as CSV in UTF-8",
}
"""Extension of a file that is not read -> how to get a file that is."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_OBJECTS = 'one JSON object per line, such as {"input": "…", "output": "…"}'
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class Record(Fields):
    """One record. A field is read when it is asked for, so that an ignored one cannot fail."""

    def __init__(
        self, where: str, places: Mapping[str, list[int]], cell: Callable[[int], object]
    ) -> None:
        """Creates a record.

        Args:
            where: Its place, for error messages.
            places: Name of a field -> its columns; more than one if the name occurs several times.
            cell: Returns the value in a column.
        """
        self._where, self._places, self._cell = where, places, cell

    def __getitem__(self, name: str) -> object:
        """Returns a field's value.

        Raises:
            FieldError: the name occurs several times.
            DataFormatError: the value cannot be read.
        """
        first, *others = self._places[name]
        if others:
            raise FieldError(
                f"{self._where}: the field {name!r} occurs {len(others) + 1} times",
                mend="rename or remove all but one",
            )
        return self._cell(first)

    def __contains__(self, name: object) -> bool:
        """Whether there is a field of this name; its value is not read."""
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        return iter(self._places)

    def __len__(self) -> int:
        """The number of different names."""
        return len(self._places)


def read_fields(path: Path) -> Records:
    """Reads the records of a file.

    Args:
        path: JSON Lines (.jsonl), CSV with a header (.csv) or Parquet (.parquet).

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: the file is binary, wrongly encoded or cut off, or a line is malformed.
            This may be raised only during the iteration, or when a field is looked up.
    """
    check_file(path)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    extension = path.suffix.lower()
    reader = readers.get(extension)
    if reader is None:
        raise DataFormatError(
            f"{path}: files of this type cannot be read",
            got=f"the file extension {path.suffix!r}",
            allowed=", ".join(readers),
            mend=_CONVERSIONS.get(
                extension,
                "convert the file, or rename it so that its extension matches its content",
            ),
        )
    return reader(path)


def with_fields(fields: Fields, others: Mapping[str, object]) -> Fields:
    """Returns a record with other fields added or replaced."""
    return ChainMap(dict(others), cast("dict[str, object]", fields))  # it is never written to


def needed(
    fields: Fields,
    name: str,
    where: str,
    *,
    role: str = "",
    mend: str = "rename or add the field",
    fill: str = "fill it or delete the row",
) -> object:
    """Returns the value of a field that must have one.

    Args:
        fields: The record.
        name: Name of the field.
        where: Place of the record, for error messages.
        role: What the field is for, for the error message.
        mend: What to do if the field is not there.
        fill: What to do if its value is missing.

    Raises:
        FieldError: the field is not there, or it is null or NaN.
    """
    if name not in fields:
        raise FieldError(
            f"{where}: there is no field {name!r}{role}",
            got=f"fields {', '.join(map(repr, fields)) or 'none'}",
            mend=f"{mend}; {did_you_mean(name, fields)}",
        )
    value = fields[name]
    if is_missing(value):
        raise FieldError(
            f"{where}: the field {name!r} is {'null' if value is None else 'NaN'}: "
            "its value is missing",
            mend=fill,
        )
    return value


def is_missing(value: object) -> bool:
    """Whether a value is null or NaN, which is how a data frame writes a missing value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def shown(value: object) -> str:
    """A value's type, and the value in at most 80 characters, for error messages."""
    try:
        return f"{type(value).__name__} {_SHORT.repr(value)}"
    except ValueError:  # Python does not write integers of more than 4,300 digits
        return f"{type(value).__name__} of several thousand digits"


def _read_jsonl(path: Path) -> Records:
    # Not splitlines: a JSON string may contain U+2028 and the like.
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        line = line.lstrip("\ufeff")  # files that were joined have byte order marks inside
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            names, values = _json_object(line)
        except json.JSONDecodeError as error:
            cut = number == len(lines)
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


def _read_csv(path: Path) -> Records:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        io.StringIO(read_exact_text(path).lstrip("\ufeff"), newline=""), strict=True
    )
    header: list[str] = []
    line = 0  # the last one that was read
    try:
        for cells in reader:
            where, line = f"{path}, line {line + 1}", reader.line_num
            if not cells:
                continue
            if not header:
                header = cells
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
