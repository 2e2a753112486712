"""What all classification tasks share, and the task of the user's own files."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from instil.errors import DataFileError, FieldError
from instil.rows import Row, read_fields
from instil.task.nearest import did_you_mean
from instil.task.pattern import Pattern, names, render
from instil.task.source import Fields, file_digest
from instil.task.verbalizer import Verbalizer


@dataclass(frozen=True)
class TaskData:
    """The rows of a task: inputs are rendered patterns, outputs are names of labels.

    Attributes:
        train: Rows to learn from, and to take demonstrations from.
        in_domain: Evaluation sets from where the training rows come from, by name.
        out_of_domain: Evaluation sets from elsewhere, by name.
    """

    train: list[Row]
    in_domain: dict[str, list[Row]]
    out_of_domain: dict[str, list[Row]]


class ClassificationTask(BaseModel, ABC):
    """A pattern that turns a row into text, and a verbalizer that turns a label into words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path | None = Field(None, description="a local copy of the sets; null: from the hub")
    prefix: str = Field("", description="stands before everything else; may be empty")
    pattern: Pattern = Field(description="text of a row, its fields' names in braces")
    verbalizer: Verbalizer = Field(
        description="label -> surface forms without a space before them; demonstrations show the first"
    )

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels' names, in the verbalizer's order."""
        return tuple(self.verbalizer)

    @abstractmethod
    def read(self) -> TaskData:
        """Reads all sets of the task.

        Raises:
            DataFileError: a file is missing or empty, or the hub lacks a data set.
            DataFormatError: a file is malformed.
            FieldError: a row lacks a field or has an unknown label.
            HubUnreachableError: the hub cannot be reached.
        """

    @abstractmethod
    def _sources(self) -> object:
        """What tells the content of the sets apart, whatever their place."""

    def digest(self) -> str:
        """A SHA-256 over the settings and the content of local files; of hub sets, over their ids.

        Raises:
            DataFileError: a file is missing or empty.
        """
        settings = self.model_dump(
            mode="json", exclude={"folder", "train", "in_domain", "out_of_domain"}
        )
        return hashlib.sha256(json.dumps([settings, self._sources()]).encode()).hexdigest()

    def _rows(
        self, name: str, read: Fields, label_field: str, labels: Mapping[str, str | None]
    ) -> list[Row]:
        """Renders a set; rows whose label stands for None are left out."""
        if label_field in names(self.pattern):
            raise FieldError(
                f"the pattern names {label_field!r}, the field that holds the label",
                mend="take it out: a text that tells its label asks nothing",
            )
        rows = []
        for where, fields in read:
            label = _label(fields, where, label_field, labels)
            if label is not None:
                rows.append(Row(render(self.pattern, fields, where), label))
        if not rows:
            raise DataFileError(f"the set {name!r} has no rows", mend="add at least one row")
        return rows


class Classification(ClassificationTask):
    """The user's own rows, in JSON Lines, CSV or Parquet."""

    name: Literal["classification"] = "classification"
    folder: Path | None = Field(None, description="where relative paths begin; null: here")
    train: Path = Field(description="rows to learn from")
    in_domain: dict[str, Path] = Field(
        min_length=1, description="name -> file of evaluation rows like the training rows"
    )
    out_of_domain: dict[str, Path] = Field(
        {}, description="name -> file of evaluation rows from elsewhere"
    )
    label: str = Field("label", description="name of the field that holds the label")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if both := sorted(self.in_domain.keys() & self.out_of_domain.keys()):
            raise ValueError(f"{both[0]!r} is named in in_domain and in out_of_domain")
        return self

    def read(self) -> TaskData:
        """Reads the files; see `ClassificationTask.read`."""
        return TaskData(
            self._read("train", self.train),
            {name: self._read(name, path) for name, path in self.in_domain.items()},
            {name: self._read(name, path) for name, path in self.out_of_domain.items()},
        )

    def _read(self, name: str, path: Path) -> list[Row]:
        labels = {label: label for label in self.verbalizer}
        return self._rows(name, read_fields(self._place(path)), self.label, labels)

    def _place(self, path: Path) -> Path:
        return self.folder / path if self.folder else path

    def _sources(self) -> object:
        return [
            file_digest(self._place(self.train)),
            {name: file_digest(self._place(path)) for name, path in self.in_domain.items()},
            {name: file_digest(self._place(path)) for name, path in self.out_of_domain.items()},
        ]


def _label(
    fields: Mapping[str, object], where: str, name: str, labels: Mapping[str, str | None]
) -> str | None:
    if name not in fields:
        raise FieldError(
            f"{where}: no field {name!r}, which should hold the label",
            got=f"fields {', '.join(map(repr, fields)) or 'none'}",
            mend=f"name the right field; {did_you_mean(name, fields)}",
        )
    value = fields[name]
    if isinstance(value, str | int) and not isinstance(value, bool) and str(value) in labels:
        return labels[str(value)]
    raise FieldError(
        f"{where}: field {name!r} holds no label of this task",
        got="null" if value is None else f"{type(value).__name__} {value!r}",
        allowed=", ".join(map(repr, labels)),
        mend="the row is not labelled: choose a labelled split, or drop it"
        if value in (None, -1, "")
        else f"mend the label; {did_you_mean(str(value), labels)}",
    )
