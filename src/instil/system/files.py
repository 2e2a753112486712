"""Files that are written completely or not at all, JSON with a schema, JSON Lines, and digests."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from instil.errors import DataFileError, DataFormatError

M = TypeVar("M", bound=BaseModel)
WHOLE_BYTES, BLOCK_BYTES, BLOCKS = 64 * 2**20, 2**16, 256
"""For `sampled_digest`: the largest file that is read whole; of a larger one, a block's size and number."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to. It is renamed to `path` if the block has no error."""
    work = path.with_name(path.name + ".part")
    try:
        yield work
        work.replace(path)
    except BaseException:
        with suppress(OSError):  # it may be a folder that has become read-only
            work.unlink(missing_ok=True)
        raise


def digest(value: object) -> str:
    """Returns the SHA-256 of a value as JSON, in hexadecimal. The order of keys does not matter.

    The JSON is hashed piece by piece, to save memory.

    Raises:
        TypeError: the value cannot be written as JSON.
    """
    hasher = hashlib.sha256()
    for piece in json.JSONEncoder(sort_keys=True).iterencode(value):
        hasher.update(piece.encode())
    return hasher.hexdigest()


def digest_ids(settings: object, sequences: Iterable[Sequence[int]]) -> str:
    """Returns the SHA-256 of settings and of sequences of token ids, in hexadecimal.

    The sequences are hashed one by one, to save memory.
    """
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for ids in sequences:
        hasher.update(array("i", [len(ids), *ids]).tobytes())
    return hasher.hexdigest()


def content_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_digest(path: Path) -> str:
    """Returns a SHA-256 of a file's content, in hexadecimal, quickly also for large files.

    It covers the whole content of files of up to 64 MiB. Of a larger file it covers the size and
    257 blocks that are evenly spaced. Training changes all of these, so they tell two states of a
    model's weights apart. A change of a few bytes by hand may stay unseen.
    """
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return content_digest(path)
    hasher = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(BLOCKS + 1):
            file.seek((size - BLOCK_BYTES) * number // BLOCKS)
            hasher.update(file.read(BLOCK_BYTES))
    return hasher.hexdigest()


class Strict(BaseModel):
    """An immutable model that refuses unknown keys and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class JsonFile(Strict):
    """The content of a JSON file."""

    lies_in: ClassVar[str]
    """The kind of folder that holds this file. It is used in the error for a wrong path."""

    def write(self, path: Path) -> None:
        """Writes the content as indented JSON, completely or not at all."""
        with written_whole(path) as work:
            work.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file that `write` has written.

        Raises:
            DataFileError: there is no such file, or it cannot be read.
            DataFormatError: another version of instil wrote the file, or it is damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            raise DataFileError(
                f"{path}: {'no such file' if missing else error.strerror or error}",
                mend=f"name the folder of a {cls.lies_in}",
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise DataFormatError(
                f"{path} is not a {path.name} of this version of instil",
                got=f"{where}{first['msg']}",
            ) from None

    @classmethod
    def json_schema(cls, title: str) -> str:
        """Returns the JSON Schema of the file, as published in `schemas/`."""
        schema = cls.model_json_schema(mode="serialization")
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        schema["title"] = title
        return json.dumps(schema, indent=1) + "\n"


def write_lines(path: Path, records: Iterable[BaseModel]) -> None:
    """Writes one JSON object per line."""
    path.write_text("".join(r.model_dump_json() + "\n" for r in records), encoding="utf-8")


def read_lines(kind: type[M], path: Path) -> list[M]:
    """Reads a file that `write_lines` has written.

    Raises:
        DataFileError: the file cannot be read.
        DataFormatError: a line is damaged, or another version of instil wrote it.
    """
    try:
        with path.open("rb") as file:
            return [kind.model_validate_json(line) for line in file if line.strip()]
    except OSError as error:
        raise DataFileError(f"{path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise DataFormatError(
            f"{path} is not a {path.name} of this version of instil",
            got="".join(f"{part}: " for part in first["loc"]) + first["msg"],
            mend="if it is damaged, run the same command again in another folder",
        ) from None
