"""Turns what is typed on a command line into settings of a recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from instil.errors import ConfigError
from instil.system.disk import from_home

MOST_NAME = 255  # letters of a file's name


def sets_of(given: Sequence[str]) -> str | dict[str, str] | None:
    """Returns the files of `--eval` as a setting of the task: one file, or files by set name.

    Raises:
        ConfigError: there are several files, and one has no name or two have the same name.
    """
    if not given:
        return None
    sets: dict[str, str] = {}
    for value in given:
        name, equals, file = value.partition("=")
        named = bool(name and equals and file) and not {"/", "\\"} & set(name)
        if not named and len(given) == 1:
            return value
        if not named or name in sets:
            raise ConfigError(
                f"--eval {value}: "
                + ("two sets have the same name" if named else "the set has no name"),
                allowed="one FILE, or NAME=FILE for each of several sets",
                mend="give each set its own name",
            )
        sets[name] = file
    return sets


def named_fields(given: Sequence[str]) -> dict[str, str]:
    """Returns `--field` as a setting of the task: name of a field -> its name in the files.

    Raises:
        ConfigError: a value is not of the form NAME=NAME.
    """
    fields: dict[str, str] = {}
    for value in given:
        ours, equals, theirs = value.partition("=")
        if not (ours and equals and theirs):
            raise ConfigError(
                f"--field {value}: this does not name two fields",
                allowed="NAME=NAME, such as input=question",
            )
        fields[ours] = theirs
    return fields


def text_of(given: str | None) -> str | None:
    """Returns a text that is given as it is, or as the name of a file that holds it.

    Raises:
        DataFormatError: the file is not text.
    """
    if given is None or "\n" in given or len(given) > MOST_NAME:
        return given
    path = from_home(given)
    if not path.is_file():
        return given
    from instil.tasks.text_files import read_text

    return read_text(path).strip()


def only_given(**settings: Any) -> dict[str, Any]:
    """Returns the settings that were given a value."""
    return {name: value for name, value in settings.items() if value is not None}


def unescape(text: str | None) -> str | None:
    r"""Replaces \n and \t by a line break and a tab, which are hard to type in a shell.

    A backslash before them keeps them as they are: `\\n` is a backslash and the letter n.
    """
    breaks = {"n": "\n", "t": "\t"}
    return text and re.sub(
        r"(\\?)(\\([nt]))", lambda found: found[2] if found[1] else breaks[found[3]], text
    )
