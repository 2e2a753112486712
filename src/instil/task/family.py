"""A family: public data sets that one pattern and one verbalizer serve, known by short names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from instil.rows import Row
from instil.task.classification import ClassificationTask, TaskData
from instil.task.nearest import did_you_mean
from instil.task.source import DataSet, fingerprint, read_set


class Family(ClassificationTask):
    """A task whose sets are named, not given as files."""

    sets: ClassVar[Mapping[str, DataSet]]

    train: str = Field(description="set to learn from")
    in_domain: tuple[str, ...] = Field(
        description="evaluation sets from where the training rows come from"
    )
    out_of_domain: tuple[str, ...] = Field(description="evaluation sets from elsewhere")

    @model_validator(mode="after")
    def _sets_are_known_and_differ(self) -> Self:
        names = self._names()
        for name in names:
            if name not in self.sets:
                raise ValueError(f"no set {name!r}; {did_you_mean(name, self.sets)}")
            if names.count(name) > 1:
                raise ValueError(f"the set {name!r} is named twice")
        if len(names) == 1:
            raise ValueError("name at least one evaluation set, in_domain or out_of_domain")
        return self

    @model_validator(mode="after")
    def _labels_are_kept(self) -> Self:
        known = self._labels(self.train).values()
        labels = list(dict.fromkeys(label for label in known if label is not None))
        if set(self.verbalizer) != set(labels):
            raise ValueError(
                f"the verbalizer names the labels {', '.join(map(repr, self.verbalizer))}; "
                f"those of this task are {', '.join(map(repr, labels))}"
            )
        return self

    def read(self) -> TaskData:
        """Reads the sets; see `ClassificationTask.read`."""
        return TaskData(
            self._read(self.train),
            {name: self._read(name) for name in self.in_domain},
            {name: self._read(name) for name in self.out_of_domain},
        )

    def _names(self) -> list[str]:
        return [self.train, *self.in_domain, *self.out_of_domain]

    def _labels(self, name: str) -> Mapping[str, str | None]:
        """What the label field of a set holds -> our label."""
        return self.sets[name].labels

    def _read(self, name: str) -> list[Row]:
        fields = read_set(name, self.sets[name], self.folder)
        return self._rows(name, fields, "label", self._labels(name))

    def _sources(self) -> object:
        def contents(names: tuple[str, ...]) -> dict[str, object]:
            return {name: fingerprint(name, self.sets[name], self.folder) for name in names}

        return [
            contents((self.train,)),
            contents(self.in_domain),
            contents(self.out_of_domain),
        ]
