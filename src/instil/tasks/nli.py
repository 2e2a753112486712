"""Natural language inference: MNLI, RTE, HANS.

MNLI: Williams et al. 2018 (N18-1101). RTE: the PASCAL challenges, as combined in GLUE (Wang et al.
2019).
HANS: McCoy et al. 2019 (P19-1334); in its rows, shared words suggest the wrong label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from instil.tasks.family import Family
from instil.tasks.pattern import Pattern
from instil.tasks.source import DataSet, Hub
from instil.tasks.verbalizer import Verbalizer

_MNLI_TWO_WAY = {
    "entailment": "entailment",
    "neutral": None,
    "contradiction": "not_entailment",
    "0": "entailment",
    "1": None,
    "2": "not_entailment",
}
_MNLI_THREE_WAY = {
    "entailment": "entailment",
    "neutral": "neutral",
    "contradiction": "contradiction",
    "0": "entailment",
    "1": "neutral",
    "2": "contradiction",
}
_TWO = {
    "entailment": "entailment",
    "not_entailment": "not_entailment",
    "non-entailment": "not_entailment",
    "0": "entailment",
    "1": "not_entailment",
}
_RTE_FIELDS = {"premise": "sentence1", "hypothesis": "sentence2"}


def _mnli(file: str, split: str) -> DataSet:
    return DataSet(file, Hub("nyu-mll/glue", split, "mnli"), _MNLI_TWO_WAY)


def _rte(file: str, split: str) -> DataSet:
    return DataSet(file, Hub("nyu-mll/glue", split, "rte"), _TWO, hub_fields=_RTE_FIELDS)


class NLI(Family):
    """Does the premise entail the hypothesis? `ways: 2` leaves out the neutral rows of MNLI."""

    sets: ClassVar[Mapping[str, DataSet]] = {
        "mnli_train": _mnli("mnli/train.jsonl", "train"),
        "mnli_matched": _mnli("mnli/dev_matched.jsonl", "validation_matched"),
        "mnli_mismatched": _mnli("mnli/dev_mismatched_1k.jsonl", "validation_mismatched"),
        "rte_train": _rte("rte/train.jsonl", "train"),
        "rte": _rte("rte/dev.jsonl", "validation"),
        "hans": DataSet(
            "hans/eval_subset.jsonl",
            # The main branch is a loading script. `datasets` no longer runs such scripts.
            Hub("jhu-cogsci/hans", "validation", revision="refs/convert/parquet"),
            _TWO,
        ),
    }

    name: Literal["nli"] = "nli"
    ways: Literal[2, 3] = Field(2, description="2: yes or no; 3: yes, no or maybe (only for MNLI)")
    prefix: str = Field(
        "Determine if the premise entails the hypothesis. Answer with yes or no.",
        description="text before everything else in the prompt; with ways: 3 it ends in `with yes, no or maybe.`",
    )
    pattern: Pattern = "Premise: {premise}\nHypothesis: {hypothesis}\nAnswer:"
    verbalizer: Verbalizer = Field(
        {"entailment": ("Yes", "yes"), "not_entailment": ("No", "no")},
        description="with ways: 3: entailment Yes, neutral Maybe, contradiction No",
    )
    train: str = "mnli_train"
    in_domain: tuple[str, ...] = ("mnli_matched",)
    out_of_domain: tuple[str, ...] = Field(
        ("mnli_mismatched", "rte", "hans"),
        description="evaluation sets from other sources; with ways: 3 only mnli_mismatched",
    )

    @model_validator(mode="before")
    @classmethod
    def _three_way_defaults(cls, settings: object) -> object:
        if not isinstance(settings, Mapping) or settings.get("ways") != 3:
            return settings
        return {
            "prefix": "Determine if the premise entails the hypothesis. Answer with yes, no or maybe.",
            "verbalizer": {
                "entailment": ("Yes", "yes"),
                "neutral": ("Maybe", "maybe"),
                "contradiction": ("No", "no"),
            },
            "out_of_domain": ("mnli_mismatched",),
            **settings,
        }

    @model_validator(mode="after")
    def _three_way_sets(self) -> Self:
        for name in self._names():
            if self.ways == 3 and self.sets[name].labels is _TWO:
                raise ValueError(
                    f"the set {name!r} has only two labels, so ways: 3 cannot use it; "
                    "leave it out, or set ways: 2"
                )
        return self

    def _labels(self, name: str) -> Mapping[str, str | None]:
        return _MNLI_THREE_WAY if self.ways == 3 else self.sets[name].labels
