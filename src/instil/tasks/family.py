"""A family: public data sets with short names, which share one pattern and one verbalizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import model_validator

from instil.tasks.classification import ClassificationTask
from instil.tasks.public_sets import NamedSets
from instil.tasks.rows import Row
from instil.tasks.source import read_set


class Family(NamedSets, ClassificationTask):
    """A classification task on public data sets, chosen by their short names."""

    @model_validator(mode="after")
    def _labels_are_kept(self) -> Self:
        known = self._labels(self.train).values()
        labels = list(dict.fromkeys(label for label in known if label is not None))
        if set(self.verbalizer) != set(labels):
            raise ValueError(
                f"the verbalizer has the labels {', '.join(map(repr, self.verbalizer))}; "
                f"it must have those of this task: {', '.join(map(repr, labels))}"
            )
        return self

    def _labels(self, name: str) -> Mapping[str, str | None]:
        """Value of the label field in a set -> label of the task."""
        return self.sets[name].labels

    def _read(self, name: str) -> list[Row]:
        fields = read_set(name, self.sets[name], self.folder)
        return self._rows(name, fields, "label", self._labels(name))
