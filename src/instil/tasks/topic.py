"""Topic of news articles: AG News (Zhang et al. 2015). A text contains title and description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from instil.tasks.family import Family
from instil.tasks.pattern import Pattern
from instil.tasks.source import DataSet, Hub
from instil.tasks.verbalizer import Verbalizer

_LABELS = {
    "World": "World",
    "Sports": "Sports",
    "Business": "Business",
    "Sci/Tech": "Sci/Tech",
    "0": "World",
    "1": "Sports",
    "2": "Business",
    "3": "Sci/Tech",
}


class Topic(Family):
    """Which of four topics is an article about?"""

    sets: ClassVar[Mapping[str, DataSet]] = {
        "ag_news_train": DataSet("ag_news/train.jsonl", Hub("fancyzhx/ag_news", "train"), _LABELS),
        "ag_news": DataSet("ag_news/eval.jsonl", Hub("fancyzhx/ag_news", "test"), _LABELS),
    }

    name: Literal["topic"] = "topic"
    prefix: str = (
        "Determine the topic of the article. Answer with World, Sports, Business or Technology."
    )
    pattern: Pattern = "Article: {text}\nTopic:"
    verbalizer: Verbalizer = {
        "World": ("World",),
        "Sports": ("Sports",),
        "Business": ("Business",),
        "Sci/Tech": ("Technology", "Science", "Sci/Tech"),
    }
    train: str = "ag_news_train"
    in_domain: tuple[str, ...] = ("ag_news",)
    out_of_domain: tuple[str, ...] = ()
