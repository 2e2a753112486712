"""`study.json`: which cells a study has; its schema, reading and writing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from instil.errors import DataFileError, DataFormatError

INDEX, CELLS = "study.json", "cells"

FolderName = Annotated[str, Field(min_length=1, pattern=r"^[^/\\]*[^/\\.][^/\\]*$")]
"""One folder, never a path that leads out of the study."""


class StudyIndex(BaseModel):
    """The whole of `study.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    title: str
    description: str = ""
    varied: list[str] = Field(description="the grid's keys, in the order of the recipe")
    cells: list[FolderName] = Field(description="folders under `cells/`, in the grid's order")

    def write(self, path: Path) -> None:
        """Writes the index as indented JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> StudyIndex:
        """Reads a `study.json`.

        Raises:
            DataFileError: there is no such file.
            DataFormatError: it is not a `study.json` of this version.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataFileError(
                f"{path}: no such file", mend="name the folder of a study"
            ) from None
        except ValueError as error:
            raise DataFormatError(
                f"{path} is not a {path.name} of this version", got=str(error).splitlines()[0]
            ) from None
