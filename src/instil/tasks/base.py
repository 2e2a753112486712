"""The base classes of all tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from instil.errors import DataFileError
from instil.system.files import digest
from instil.system.settings import Settings
from instil.tasks.pattern import Pattern
from instil.tasks.rows import Row


@dataclass(frozen=True)
class TaskData:
    """The rows of a task.

    The input of a row is the rendered pattern. Its output is the name of a label, or a text.

    Attributes:
        train: Rows to learn from, and to take demonstrations from.
        in_domain: Name -> evaluation rows from the same source as the training rows.
        out_of_domain: Name -> evaluation rows from other sources.
        inputs: Rows without outputs, to learn from instead of `train`; None if there are none.
    """

    train: list[Row]
    in_domain: dict[str, list[Row]]
    out_of_domain: dict[str, list[Row]]
    inputs: list[Row] | None = None


class TaskBase(Settings, ABC):
    """Where the rows come from, and which answers are right.

    Attributes:
        answers: `labels` if an answer is one of several labels, `text` if it is free text.
        name: Name of the task in a recipe.
    """

    answers: ClassVar[Literal["labels", "text"]]

    name: str
    folder: Path | None = Field(
        None, description="folder with a local copy of the data sets; null: read them from the hub"
    )

    @property
    def local(self) -> bool:
        """Whether the rows are in local files."""
        return self.folder is not None

    @abstractmethod
    def read(self) -> TaskData:
        """Reads all sets of the task.

        Raises:
            DataFileError: a file is missing or empty, or the hub does not have a data set.
            DataFormatError: a file is malformed.
            FieldError: a row has no field of a needed name, or its output is not known to the task.
            HubUnreachableError: the hub cannot be reached.
        """

    @abstractmethod
    def _sources(self) -> list[object]:
        """Values that identify the content of the sets, wherever the files are."""

    def content_fields(self) -> set[str]:
        """Fields that name sets; `digest` uses the sets' content (`_sources`) instead of them."""
        return {"train", "unlabelled", "in_domain", "out_of_domain"}

    def digest(self) -> str:
        """A SHA-256 of the settings and of the sets: the content of local files, or the hub ids.

        Raises:
            DataFileError: a file is missing or empty.
        """
        # As JSON text, because the order of the labels in a verbalizer matters.
        settings = self.model_dump_json(exclude={"folder", *self.content_fields()})
        return digest([settings, self._sources()])


class PatternTask(TaskBase):
    """A task whose rows are rendered by a pattern."""

    prefix: str = Field("", description="text before everything else in the prompt; may be empty")
    pattern: Pattern = Field(description="text of a row, with the names of its fields in braces")


def some(rows: list[Row], name: str) -> list[Row]:
    """Checks that a set has rows, and returns them.

    Raises:
        DataFileError: the set has no rows.
    """
    if not rows:
        raise DataFileError(f"the set {name!r} has no rows", mend="add at least one row")
    return rows
