"""Sentiment of reviews: SST-2 (films), and reviews of Amazon, IMDb and Yelp.

SST-2: Socher et al. 2013 (D13-1170). The local files of the other three are single sentences (Kotzias et al. 2015); the
hub's sets of the same names are whole reviews (IMDb: Maas et al. 2011; Amazon and Yelp: Zhang et al. 2015), which is
another and longer kind of text: do not compare scores across the two. SST-2's local file is the test split with its
gold labels, which the hub hides, so there the validation split stands for it; and the hub's training split holds
phrases of sentences, too.

Demonstrations show the first word of each label. With capitals the bundled model is a better teacher, averaged and calibrated
(benchmarks/sentiment_words.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from instil.tasks.family import Family
from instil.tasks.pattern import Pattern
from instil.tasks.source import DataSet, Hub
from instil.tasks.verbalizer import Verbalizer

_LABELS = {"negative": "negative", "positive": "positive", "0": "negative", "1": "positive"}
_SENTENCE = {"text": "sentence"}


def _sst2(file: str, split: str) -> DataSet:
    return DataSet(file, Hub("stanfordnlp/sst2", split), _LABELS, _SENTENCE, _SENTENCE)


class Sentiment(Family):
    """Is a review negative or positive?"""

    sets: ClassVar[Mapping[str, DataSet]] = {
        "sst2_train": _sst2("sst2/train.jsonl", "train"),
        "sst2": _sst2("sst2/test.jsonl", "validation"),
        "amazon": DataSet(
            "uci_sentiment/amazon.jsonl",
            Hub("fancyzhx/amazon_polarity", "test"),
            _LABELS,
            _SENTENCE,
            {"text": "content"},
        ),
        "imdb": DataSet(
            "uci_sentiment/imdb.jsonl", Hub("stanfordnlp/imdb", "test"), _LABELS, _SENTENCE
        ),
        "yelp": DataSet(
            "uci_sentiment/yelp.jsonl", Hub("fancyzhx/yelp_polarity", "test"), _LABELS, _SENTENCE
        ),
    }

    name: Literal["sentiment"] = "sentiment"
    prefix: str = "Determine if the review is negative or positive."
    pattern: Pattern = "Review: {text}\nSentiment:"
    verbalizer: Verbalizer = {
        "negative": ("Negative", "negative"),
        "positive": ("Positive", "positive"),
    }
    train: str = "sst2_train"
    in_domain: tuple[str, ...] = ("sst2",)
    out_of_domain: tuple[str, ...] = ("amazon", "imdb", "yelp")
