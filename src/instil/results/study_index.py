"""`study.json`: which cells a study has; its schema, reading and writing."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from instil.system.files import JsonFile

INDEX, CELLS = "study.json", "cells"

FolderName = Annotated[str, Field(min_length=1, pattern=r"^[^/\\]*[^/\\.][^/\\]*$")]
"""One folder, never a path that leads out of the study."""


class StudyIndex(JsonFile):
    """The whole of `study.json`."""

    lies_in: ClassVar[str] = "study"

    schema_version: Literal[1] = 1
    title: str
    description: str = ""
    varied: list[str] = Field(description="the grid's keys, in the order of the recipe")
    cells: list[FolderName] = Field(description="folders under `cells/`, in the grid's order")
