"""Classification tasks as data: a pattern, a verbalizer, and where the rows come from; and the table that names them.

A new family of data sets is a file with a class like those here, and one more member of `Task`.
"""

from typing import Annotated

from pydantic import Field

from instil.task.classification import Classification, TaskData
from instil.task.nli import NLI
from instil.task.paraphrase import Paraphrase
from instil.task.sentiment import Sentiment
from instil.task.topic import Topic

Task = Annotated[NLI | Paraphrase | Sentiment | Topic | Classification, Field(discriminator="name")]

__all__ = ["NLI", "Classification", "Paraphrase", "Sentiment", "Task", "TaskData", "Topic"]
