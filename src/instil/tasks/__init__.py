"""Tasks as data: a pattern, what tells a right answer, and where the rows come from; and the table that names them.

Answers are labels, which a verbalizer turns into words, or they are written. A new family of data sets is a file with a class
like those here, and one more member of `LabelTask`, or of `Task` and `WRITTEN`.
"""

from typing import Annotated

from pydantic import Field

from instil.tasks.base import TaskData
from instil.tasks.classification import Classification
from instil.tasks.gsm8k import GSM8K
from instil.tasks.nli import NLI
from instil.tasks.paraphrase import Paraphrase
from instil.tasks.sentiment import Sentiment
from instil.tasks.topic import Topic

LabelTask = NLI | Paraphrase | Sentiment | Topic | Classification
Task = Annotated[LabelTask | GSM8K, Field(discriminator="name")]
WRITTEN = frozenset({"gsm8k"})
"""Names of the tasks whose answers are written."""

__all__ = [
    "GSM8K",
    "NLI",
    "WRITTEN",
    "Classification",
    "LabelTask",
    "Paraphrase",
    "Sentiment",
    "Task",
    "TaskData",
    "Topic",
]
