r"""Patterns, which turn the fields of a row into one text.

An example is `Premise: {premise}\nHypothesis: {hypothesis}\nAnswer:`. A name in braces is replaced
by the field with that name. `{{` and `}}` are plain braces. Other features of `str.format` are not
allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from string import Formatter
from typing import Annotated

from pydantic import AfterValidator

from instil.errors import FieldError
from instil.tasks.records import needed, shown
from instil.tasks.text_files import check_characters


def render(pattern: str, fields: Mapping[str, object], where: str) -> str:
    """Writes a row's fields into a pattern.

    Args:
        pattern: A checked pattern.
        fields: The row's fields: texts and numbers.
        where: Place of the row (for example file and line), for error messages.

    Raises:
        FieldError: a field of the pattern is missing, null or NaN, or is neither text nor a number,
            or all fields are blank.
        DataFormatError: the text contains a lone surrogate (half a character).
    """
    pieces = _pieces(pattern)
    values = {name: _value(fields, name, where) for _, name in pieces if name is not None}
    if not any(map(str.strip, values.values())):
        raise FieldError(
            f"{where}: the fields of the pattern are empty",
            got=f"only white space in {', '.join(map(repr, values))}",
            mend="fill the fields or delete the row",
        )
    text = "".join(literal + (values[name] if name is not None else "") for literal, name in pieces)
    check_characters(text, where)
    return text


def names(pattern: str) -> set[str]:
    """Names of the fields in a checked pattern."""
    return {name for _, name in _pieces(pattern) if name is not None}


def fill(pattern: str, text: str) -> str:
    """Replaces every field with the same text, for example `N/A` (an input without content)."""
    return "".join(
        literal + (text if name is not None else "") for literal, name in _pieces(pattern)
    )


def _value(fields: Mapping[str, object], name: str, where: str) -> str:
    value = needed(fields, name, where, role=", which the pattern contains")
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise FieldError(
            f"{where}: the field {name!r} is neither text nor a number",
            got=shown(value),
            mend="write it as text, or delete the row",
        )
    if isinstance(value, float) and math.isinf(value):
        raise FieldError(
            f"{where}: the field {name!r} is infinite",
            got=str(value),
            mend="write it as text, or delete the row",
        )
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


@lru_cache(maxsize=64)
def _pieces(pattern: str) -> tuple[tuple[str, str | None], ...]:
    """Pairs of literal text and the name of the field after it; the name is None at the end."""
    pieces = []
    for literal, name, form, conversion in Formatter().parse(pattern):
        if name is not None and (not name.strip() or set(name) & set(".[]")):
            raise ValueError(f"{{{name}}} is not the name of a field")
        if form or conversion:
            raise ValueError(
                f"inside braces only the name is allowed, as in {{{name}}}, without '!' and ':'"
            )
        pieces.append((literal, name))
    return tuple(pieces)


def _checked(pattern: str) -> str:
    try:
        pieces = _pieces(pattern)
    except ValueError as error:
        raise ValueError(
            f"not a valid pattern: {error} (for a plain brace, write {{{{ or }}}})"
        ) from None
    if all(name is None for _, name in pieces):
        raise ValueError("must contain at least one field of the rows in braces, such as {text}")
    return pattern


Pattern = Annotated[str, AfterValidator(_checked)]
