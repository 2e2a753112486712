"""Paraphrase identification: QQP and PAWS-Wiki.

QQP: Quora's question pairs, as in GLUE (Wang et al. 2019). PAWS: Zhang et al. 2019 (N19-1131); the
two sentences of a pair use the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from instil.tasks.family import Family
from instil.tasks.pattern import Pattern
from instil.tasks.source import DataSet, Hub
from instil.tasks.verbalizer import Verbalizer

_LABELS = {
    "duplicate": "paraphrase",
    "not_duplicate": "not_paraphrase",
    "paraphrase": "paraphrase",
    "not_paraphrase": "not_paraphrase",
    "1": "paraphrase",
    "0": "not_paraphrase",
}
_QUESTIONS = {"first": "question1", "second": "question2"}
_SENTENCES = {"first": "sentence1", "second": "sentence2"}


def _qqp(file: str, split: str) -> DataSet:
    return DataSet(file, Hub("nyu-mll/glue", split, "qqp"), _LABELS, _QUESTIONS, _QUESTIONS)


class Paraphrase(Family):
    """Do two sentences or questions mean the same?"""

    sets: ClassVar[Mapping[str, DataSet]] = {
        "qqp_train": _qqp("qqp/train.jsonl", "train"),
        "qqp": _qqp("qqp/eval.jsonl", "validation"),
        "paws": DataSet(
            "paws_wiki/dev.jsonl",
            Hub("google-research-datasets/paws", "validation", "labeled_final"),
            _LABELS,
            _SENTENCES,
            _SENTENCES,
        ),
    }

    name: Literal["paraphrase"] = "paraphrase"
    prefix: str = "Determine if the two sentences mean the same. Answer with yes or no."
    pattern: Pattern = "Sentence 1: {first}\nSentence 2: {second}\nAnswer:"
    verbalizer: Verbalizer = {"paraphrase": ("Yes", "yes"), "not_paraphrase": ("No", "no")}
    train: str = "qqp_train"
    in_domain: tuple[str, ...] = ("qqp",)
    out_of_domain: tuple[str, ...] = ("paws",)
