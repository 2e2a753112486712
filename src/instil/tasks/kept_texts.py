"""A user's file of kept texts."""

from __future__ import annotations

from pathlib import Path

from instil.tasks.base import some
from instil.tasks.formats import read_fields
from instil.tasks.records import Fields, is_missing
from instil.tasks.rows import Row, make_rows, row_of


def read_kept(path: Path) -> list[Row]:
    """Reads a file of texts: rows with a field `text`, or with `input` and perhaps `output`.

    Returns:
        A row per text. A text that begins by itself is the output of an empty input.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: the file is malformed.
        FieldError: a row has neither field, or an empty one.
    """

    def made(fields: Fields, where: str) -> Row:
        if is_missing(fields.get("text")):
            return row_of(fields, where, need_output=False)
        return Row("", row_of(fields, where, need_output=False, input="text").input)

    return some(make_rows(read_fields(path), made), str(path))
