r"""A pattern: a row's fields written into one text, `Premise: {premise}\nHypothesis: {hypothesis}\nAnswer:`.

Names in braces are replaced by the fields of that name and `{{` and `}}` are braces. Nothing else that `str.format`
knows is allowed: a pattern reads fields and computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from string import Formatter
from typing import Annotated

from pydantic import AfterValidator

from instil.errors import FieldError, did_you_mean
from instil.tasks.rows import check_characters


def render(pattern: str, fields: Mapping[str, object], where: str) -> str:
    """Writes a row's fields into a pattern.

    Args:
        pattern: A checked pattern.
        fields: The row's fields; numbers are written as they are.
        where: Where the row stands, for messages.

    Raises:
        FieldError: a field of the pattern is missing, null or neither text nor number, or all of them are blank.
        DataFormatError: the text holds half a character.
    """
    pieces = _pieces(pattern)
    values = {name: _value(fields, name, where) for _, name in pieces if name is not None}
    if not any(map(str.strip, values.values())):
        raise FieldError(
            f"{where}: nothing to read",
            got=f"blank text in {', '.join(map(repr, values))}",
            mend="fill the row or drop it",
        )
    text = "".join(literal + (values[name] if name is not None else "") for literal, name in pieces)
    check_characters(text, where)
    return text


def names(pattern: str) -> set[str]:
    """The fields that a checked pattern names."""
    return {name for _, name in _pieces(pattern) if name is not None}


def fill(pattern: str, text: str) -> str:
    """Writes the same text in place of every field, for example `N/A` for an input without content."""
    return "".join(
        literal + (text if name is not None else "") for literal, name in _pieces(pattern)
    )


def _value(fields: Mapping[str, object], name: str, where: str) -> str:
    if name not in fields:
        raise FieldError(
            f"{where}: no field {name!r}, which the pattern names",
            got=f"fields {', '.join(map(repr, fields)) or 'none'}",
            mend=f"rename or add the field; {did_you_mean(name, fields)}",
        )
    value = fields[name]
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise FieldError(
            f"{where}: field {name!r} is neither text nor a number",
            got="null" if value is None else f"{type(value).__name__} {value!r}",
            mend="write it as text, or drop the row",
        )
    return str(value)


@lru_cache(maxsize=64)
def _pieces(pattern: str) -> tuple[tuple[str, str | None], ...]:
    """Literal text and the field that follows it; None where only text is left."""
    pieces = []
    for literal, name, form, conversion in Formatter().parse(pattern):
        if name is not None and (not name.strip() or set(name) & set(".[]")):
            raise ValueError(f"{{{name}}} is no field's name")
        if form or conversion:
            raise ValueError(f"only {{{name}}} is allowed: no '!' and no ':' inside the braces")
        pieces.append((literal, name))
    return tuple(pieces)


def _checked(pattern: str) -> str:
    try:
        pieces = _pieces(pattern)
    except ValueError as error:
        raise ValueError(f"not a pattern: {error} (write {{{{ or }}}} for a brace)") from None
    if all(name is None for _, name in pieces):
        raise ValueError("must name at least one field of the rows, such as {text}")
    return pattern


Pattern = Annotated[str, AfterValidator(_checked)]
