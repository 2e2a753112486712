"""The base class of classification tasks, and the task for the user's own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from instil.errors import FieldError, did_you_mean
from instil.tasks.base import PatternTask, TaskData, some
from instil.tasks.formats import read_fields
from instil.tasks.pattern import names, render
from instil.tasks.records import Fields, Records, needed, shown
from instil.tasks.rows import Row, make_rows
from instil.tasks.source import file_digest
from instil.tasks.verbalizer import Verbalizer


class ClassificationTask(PatternTask):
    """A pattern that turns a row into text, and a verbalizer that turns a label into words."""

    answers: ClassVar[Literal["labels", "text"]] = "labels"

    verbalizer: Verbalizer = Field(
        description="label -> surface forms, without a space at the start; demonstrations show the first"
    )

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels' names, in the verbalizer's order."""
        return tuple(self.verbalizer)

    def _rows(
        self, name: str, read: Records, label_field: str, labels: Mapping[str, str | None]
    ) -> list[Row]:
        """Renders a set; leaves out rows whose label maps to None in `labels`."""
        if label_field in names(self.pattern):
            raise FieldError(
                f"the pattern contains the field {label_field!r}, which holds the label",
                mend="remove it from the pattern: a prompt must not show its own answer",
            )

        def made(fields: Fields, where: str) -> Row | None:
            label = _label(fields, where, label_field, labels)
            return None if label is None else Row(render(self.pattern, fields, where), label)

        return some(make_rows(read, made), name)


class Classification(ClassificationTask):
    """The user's own rows, in JSON Lines, CSV or Parquet."""

    name: Literal["classification"] = "classification"
    folder: Path | None = Field(
        None, description="folder that relative paths start from; null: the current folder"
    )
    train: Path = Field(description="file of rows to learn from")
    unlabelled: Path | None = Field(
        None,
        description="file of rows without labels to distil on; null: distil on rows of train. "
        "Demonstrations always come from train",
    )
    in_domain: dict[str, Path] = Field(
        min_length=1,
        description="name -> file of evaluation rows from the same source as the training rows",
    )
    out_of_domain: dict[str, Path] = Field(
        {}, description="name -> file of evaluation rows from other sources"
    )
    label: str = Field("label", description="name of the field that holds the label")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if both := sorted(self.in_domain.keys() & self.out_of_domain.keys()):
            raise ValueError(
                f"{both[0]!r} is in both in_domain and out_of_domain; use two different names"
            )
        return self

    @property
    @override
    def local(self) -> bool:
        return True

    def read(self) -> TaskData:
        """Reads the files; see `TaskBase.read`."""
        return TaskData(
            self._read("train", self.train),
            {name: self._read(name, path) for name, path in self.in_domain.items()},
            {name: self._read(name, path) for name, path in self.out_of_domain.items()},
            None if self.unlabelled is None else self._inputs(self.unlabelled),
        )

    def _inputs(self, path: Path) -> list[Row]:
        read = read_fields(self._place(path))
        return some(
            make_rows(read, lambda fields, where: Row(render(self.pattern, fields, where))),
            "unlabelled",
        )

    def _read(self, name: str, path: Path) -> list[Row]:
        labels = {label: label for label in self.verbalizer}
        return self._rows(name, read_fields(self._place(path)), self.label, labels)

    def _place(self, path: Path) -> Path:
        return self.folder / path if self.folder else path

    def _sources(self) -> list[object]:
        return [
            file_digest(self._place(self.train)),
            [(name, file_digest(self._place(path))) for name, path in self.in_domain.items()],
            [(name, file_digest(self._place(path))) for name, path in self.out_of_domain.items()],
            *([file_digest(self._place(self.unlabelled))] if self.unlabelled else []),
        ]


def _label(fields: Fields, where: str, name: str, labels: Mapping[str, str | None]) -> str | None:
    no_label = "the row has no label: use a split with labels, or delete the row"
    value = needed(
        fields,
        name,
        where,
        role=", which should hold the label",
        mend="set task.label to the name of the field",
        fill=no_label,
    )
    if isinstance(value, str | int) and not isinstance(value, bool) and str(value) in labels:
        return labels[str(value)]
    near = did_you_mean(str(value)[:80].removesuffix(".0"), labels)
    raise FieldError(
        f"{where}: the field {name!r} does not hold a label of this task",
        got=shown(value),
        allowed=", ".join(map(repr, labels)),
        mend=no_label if value in (-1, "") else f"correct the label; {near}",
    )
