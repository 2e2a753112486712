"""Tasks as data: a pattern, what tells a right answer, and where the rows come from; and the table that names them.

A new task is a file with a class like those here, and one more member of `LabelTask` or `TextTask`.
"""

from typing import Annotated, get_args

from pydantic import Field

from instil.tasks.base import TaskBase, TaskData
from instil.tasks.classification import Classification
from instil.tasks.gsm8k import GSM8K
from instil.tasks.metrics import metric
from instil.tasks.nli import NLI
from instil.tasks.paraphrase import Paraphrase
from instil.tasks.sentiment import Sentiment
from instil.tasks.topic import Topic

LabelTask = NLI | Paraphrase | Sentiment | Topic | Classification
TextTask = GSM8K
Task = Annotated[LabelTask | TextTask, Field(discriminator="name")]
TASKS: dict[str, type[TaskBase]] = {
    task.model_fields["name"].default: task for task in get_args(get_args(Task)[0])
}
"""Name -> task."""

__all__ = [
    "GSM8K",
    "NLI",
    "TASKS",
    "Classification",
    "LabelTask",
    "Paraphrase",
    "Sentiment",
    "Task",
    "TaskData",
    "TextTask",
    "Topic",
    "metric",
]
