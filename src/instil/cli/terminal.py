"""Makes standard output and standard error take every text, whatever their encoding."""

from __future__ import annotations

import codecs
import io
import sys

PLAIN = {"–": "-", "—": "-", "…": "...", "→": "->", "×": "x", "≥": ">=", "\N{NO-BREAK SPACE}": " "}
"""Characters of instil's own messages, and what stands for them where they are missing."""
HANDLER = "instil.plain"


def use_plain_letters() -> None:
    """Replaces characters that the terminal lacks, in place of an error.

    Otherwise a command could end with an error in its last message, after all its work.
    """
    codecs.register_error(HANDLER, plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


def plain(error: UnicodeError) -> tuple[str, int]:
    """Writes a character that an encoding lacks in ASCII: a similar one, or its number.

    Raises:
        UnicodeError: the error does not come from writing text.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter, ascii(letter)[1:-1]) for letter in missing), error.end
