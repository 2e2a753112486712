"""Sentiment of reviews: SST-2 (films), and reviews of Amazon, IMDb and Yelp.

SST-2: Socher et al. 2013 (D13-1170). The local file is the test split with its gold labels. The hub
hides these labels, so from the hub the validation split is read instead. The hub's training split
also contains phrases, not only sentences.

The local files of Amazon, IMDb and Yelp contain single sentences (Kotzias et al. 2015). The hub's
sets of the same names contain full, longer reviews (IMDb: Maas et al. 2011; Amazon and Yelp: Zhang
et al. 2015). So do not compare scores on the local files with scores on the hub's sets.

Demonstrations show the first surface form of each label. With capital letters, and with averaged
and calibrated contexts, the bundled model is a better teacher (benchmarks/sentiment_settings.yaml).
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
