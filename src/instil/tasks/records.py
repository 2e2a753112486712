"""Records: rows with fields of any names."""

from __future__ import annotations

import math
import reprlib
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from instil.errors import FieldError, did_you_mean

Fields = Mapping[str, object]
"""The fields of a record by name."""
Records = Iterator[tuple[str, Fields]]
"""For each record its place (for example file and line), for error messages, and its fields."""

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
