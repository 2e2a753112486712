"""A task whose sets are public and known by short names, not given as files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from instil.errors import did_you_mean
from instil.tasks.base import TaskBase, TaskData
from instil.tasks.rows import Row
from instil.tasks.source import DataSet, fingerprint


class NamedSets(TaskBase):
    """The choice of a training set and evaluation sets among those that the task knows."""

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

    def read(self) -> TaskData:
        """Reads the sets; see `TaskBase.read`."""
        return TaskData(
            self._read(self.train),
            {name: self._read(name) for name in self.in_domain},
            {name: self._read(name) for name in self.out_of_domain},
        )

    @abstractmethod
    def _read(self, name: str) -> list[Row]:
        """Reads one set."""

    def _names(self) -> list[str]:
        return [self.train, *self.in_domain, *self.out_of_domain]

    def _sources(self) -> list[object]:
        def contents(*names: str) -> list[object]:
            return [(name, fingerprint(name, self.sets[name], self.folder)) for name in names]

        return [
            contents(self.train),
            contents(*self.in_domain),
            contents(*self.out_of_domain),
        ]
