"""What every task is: a pattern that turns a row of a data set into text, and where the rows come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from instil.errors import DataFileError
from instil.system.files import digest
from instil.tasks.pattern import Pattern
from instil.tasks.rows import Row


@dataclass(frozen=True)
class TaskData:
    """The rows of a task: inputs are rendered patterns, outputs are names of labels or whole texts.

    Attributes:
        train: Rows to learn from, and to take demonstrations from.
        in_domain: Evaluation sets from where the training rows come from, by name.
        out_of_domain: Evaluation sets from elsewhere, by name.
        inputs: Rows to learn from in place of those of `train`, without outputs; None: there are none.
    """

    train: list[Row]
    in_domain: dict[str, list[Row]]
    out_of_domain: dict[str, list[Row]]
    inputs: list[Row] | None = None


class TaskBase(BaseModel, ABC):
    """A pattern that turns a row into text, and the sets that the rows come from.

    Attributes:
        answers: Whether answers are chosen from labels or are free text.
        name: Tells the task from the others in a recipe.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    answers: ClassVar[Literal["labels", "text"]]

    name: str
    folder: Path | None = Field(None, description="a local copy of the sets; null: from the hub")
    prefix: str = Field("", description="stands before everything else; may be empty")
    pattern: Pattern = Field(description="text of a row, its fields' names in braces")

    @property
    def local(self) -> bool:
        """Whether the sets lie in local files."""
        return self.folder is not None

    @abstractmethod
    def read(self) -> TaskData:
        """Reads all sets of the task.

        Raises:
            DataFileError: a file is missing or empty, or the hub lacks a data set.
            DataFormatError: a file is malformed.
            FieldError: a row lacks a field, or holds an output that the task does not know.
            HubUnreachableError: the hub cannot be reached.
        """

    @abstractmethod
    def _sources(self) -> list[object]:
        """What tells the content of the sets apart, whatever their place."""

    def digest(self) -> str:
        """A SHA-256 over the settings and the content of local files; of hub sets, over their ids.

        Raises:
            DataFileError: a file is missing or empty.
        """
        # As text: the order of a verbalizer's labels counts.
        settings = self.model_dump_json(
            exclude={"folder", "train", "unlabelled", "in_domain", "out_of_domain"}
        )
        return digest([settings, self._sources()])


def some(rows: list[Row], name: str) -> list[Row]:
    """The rows of a set, which must not be without any.

    Raises:
        DataFileError: there are none.
    """
    if not rows:
        raise DataFileError(f"the set {name!r} has no rows", mend="add at least one row")
    return rows
