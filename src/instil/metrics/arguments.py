"""Reads the arguments of rules. Each function refuses a wrong one with a `ValueError`."""

from __future__ import annotations

import re
from typing import Any


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text is expected, in quotation marks")
    return value


def texts(value: Any) -> list[str]:
    """A text, or a list of texts."""
    given = value if isinstance(value, list) else [value]
    if not given:
        raise ValueError("a text or a list of texts is expected")
    return [text(one) for one in given]


def count(value: Any) -> int:
    """A number of things."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a whole number is expected, 0 or more")
    return value


def pattern(value: Any) -> re.Pattern[str]:
    """A regular expression."""
    if not isinstance(value, str):
        raise ValueError("a regular expression is expected, in quotation marks")
    try:
        return re.compile(value)
    except re.error as error:
        raise ValueError(f"this is no regular expression: {error}") from error


def yes(value: Any) -> bool:
    """`true`: the rule has no argument."""
    if value is not True:
        raise ValueError("true is expected; delete a rule that does not count")
    return True
