"""Tasks on public data sets, which are chosen by short names."""

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
    """A task with a table of public data sets; a recipe chooses some of them by name."""

    sets: ClassVar[Mapping[str, DataSet]]

    train: str = Field(description="name of the set to learn from")
    in_domain: tuple[str, ...] = Field(
        description="names of evaluation sets from the same source as the training rows"
    )
    out_of_domain: tuple[str, ...] = Field(
        description="names of evaluation sets from other sources"
    )

    @model_validator(mode="after")
    def _sets_are_known_and_differ(self) -> Self:
        names = self._names()
        for name in names:
            if name not in self.sets:
                raise ValueError(f"there is no set {name!r}; {did_you_mean(name, self.sets)}")
            if names.count(name) > 1:
                raise ValueError(
                    f"the set {name!r} is given twice; each set may be given only once"
                )
        if len(names) == 1:
            raise ValueError(
                "there is no evaluation set; put at least one into in_domain or out_of_domain"
            )
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
