"""Files that others read again: JSON with a schema, JSON Lines, anything that must be whole or absent; and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from instil.errors import DataFileError, DataFormatError

M = TypeVar("M", bound=BaseModel)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives another name to write to; the file gets its own when the block ends without an error."""
    work = path.with_name(path.name + ".part")
    yield work
    work.replace(path)


def digest(value: object) -> str:
    """SHA-256 of a value in canonical JSON, in hexadecimal digits; the order of a mapping's keys does not count.

    Raises:
        TypeError: the value holds something that JSON does not know.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def content_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Strict(BaseModel):
    """Knows no unknown keys and no NaN, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class JsonFile(Strict):
    """A whole JSON file."""

    lies_in: ClassVar[str]
    """What kind of folder holds this file; used in the error for a wrong path."""

    def write(self, path: Path) -> None:
        """Writes it as indented JSON, whole or not at all."""
        with written_whole(path) as work:
            work.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote.

        Raises:
            DataFileError: there is no such file.
            DataFormatError: it is not one of this version.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise DataFileError(
                f"{path}: no such file", mend=f"name the folder of a {cls.lies_in}"
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise DataFormatError(
                f"{path} is not a {path.name} of this version", got=f"{where}{first['msg']}"
            ) from None

    @classmethod
    def json_schema(cls, title: str) -> str:
        """Its JSON Schema, as it is published under `schemas/`."""
        schema = cls.model_json_schema()
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        schema["title"] = title
        return json.dumps(schema, indent=1) + "\n"


def write_lines(path: Path, records: Iterable[BaseModel]) -> None:
    """Writes one JSON object a line."""
    path.write_text("".join(r.model_dump_json() + "\n" for r in records), encoding="utf-8")


def read_lines(kind: type[M], path: Path) -> list[M]:
    """Reads what `write_lines` wrote."""
    # Not splitlines: a text may hold U+2028, which is no line break in JSON Lines.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [kind.model_validate_json(line) for line in lines if line]
