"""Where rows lie: a file, a folder, a pattern of names, a data set on the hub, or standard input."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from glob import glob, has_magic
from pathlib import Path

from instil.errors import DataFileError
from instil.system.disk import cache_folder
from instil.system.files import digest, written_whole
from instil.tasks.formats import READERS, extension_of, read_fields
from instil.tasks.records import Records
from instil.tasks.source import Hub, file_digest, read_hub

HUB = re.compile(
    r"hub:(?P<id>[^@:]+/[^@:]+)(@(?P<revision>[^:]+))?:((?P<config>[^:]+):)?(?P<split>[^:]+)"
)
"""A data set on the hub: hub:OWNER/NAME[@REVISION]:[CONFIG:]SPLIT."""
_HUB_FORM = "hub:OWNER/NAME:SPLIT, with @REVISION after the name, and CONFIG: before the split"
STANDARD_INPUT = Path("-")


def read_place(place: Path) -> Records:
    """Reads the records of a place.

    Args:
        place: A file, a folder, a pattern such as `logs/*.jsonl`, or `hub:OWNER/NAME:SPLIT`.

    Raises:
        DataFileError: there is no such place, or it holds no files of rows.
        DataFormatError: a file is malformed.
        HubUnreachableError: the hub cannot be reached.
    """
    if (hub := _hub(place)) is not None:
        yield from read_hub(str(place), hub, mend="check the name, or give a local file")
        return
    for file in _files(place):
        yield from read_fields(file)


def place_digest(place: Path) -> str:
    """A SHA-256 of all that a place holds: of the files' content, or of the names on the hub.

    Raises:
        DataFileError: there is no such place.
    """
    if (hub := _hub(place)) is not None:
        return digest([hub.id, hub.revision, hub.config, hub.split])
    files = _files(place)
    if files == [place]:
        return file_digest(place)
    return digest([[file.name, file_digest(file)] for file in files])


def spooled(place: Path) -> Path:
    """The place; standard input is written to a file in the cache folder, named by its content.

    So the rows can be read more than once, and the same rows resume the same run.

    Raises:
        DataFileError: standard input is empty.
    """
    if place != STANDARD_INPUT:
        return place
    data = sys.stdin.buffer.read()
    if not data.strip():
        raise DataFileError("standard input is empty", mend="pipe rows in, or name a file")
    file = cache_folder() / "input" / f"{hashlib.sha256(data).hexdigest()[:32]}.jsonl"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as work:
            work.write_bytes(data)
    return file


def _hub(place: Path) -> Hub | None:
    name = str(place)
    if not name.startswith("hub:"):
        return None
    found = HUB.fullmatch(name)
    if found is None:
        raise DataFileError(
            f"{name}: this does not name a data set on the hub",
            allowed=_HUB_FORM,
            mend="name the split, for example hub:OWNER/NAME:train",
        )
    return Hub(found["id"], found["split"], found["config"], found["revision"])


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        found = sorted(_readable(place.rglob("*")))
        what = f"{place}: the folder holds no files of rows"
    elif has_magic(str(place)) and not place.exists():
        names = glob(str(place), recursive=True)  # noqa: PTH207 - the pattern may be absolute
        found = sorted(_readable(map(Path, names)))
        what = f"{place}: no files of rows match this pattern"
    else:
        return [place]
    if not found:
        raise DataFileError(what, allowed=", ".join(READERS), mend="check the path")
    return found


def _readable(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that can be read, but none that is hidden."""
    for path in paths:
        if path.is_file() and extension_of(path) in READERS and not path.name.startswith("."):
            yield path
