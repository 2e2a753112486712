"""The language of an answer, by the library `py3langid`."""

from __future__ import annotations

import re
from typing import Any

from instil.metrics.arguments import text
from instil.metrics.registry import metric, needs

LEAST_LETTERS = 12
"""An answer with fewer letters can be of many languages."""


def _identified(words: str) -> str:
    try:
        import py3langid
    except ImportError as error:
        raise needs("py3langid", "language") from error
    return str(py3langid.classify(words)[0])


def _code(value: Any) -> str:
    given = text(value)
    if not re.fullmatch(r"[a-z]{2}", given):
        raise ValueError("the code of a language is expected, of two letters, such as en")
    return given


@metric("language", compares=False, reads=_code)
def language(written: str, expected: str) -> bool:
    """Whether an answer is in this language. An answer of less than 12 letters is in any."""
    if sum(letter.isalpha() for letter in written) < LEAST_LETTERS:
        return True
    return _identified(written) == expected
