"""The tasks, and the table of their names.

A task has a pattern, a rule for right answers, and a source of rows. To add a task, write a file
with a class like those here, and add the class to `LabelTask` or `TextTask`.
"""

from typing import Annotated, get_args

from pydantic import Field

from instil.tasks.base import TaskBase, TaskData
from instil.tasks.classification import Classification
from instil.tasks.files import Files
from instil.tasks.gsm8k import GSM8K
from instil.tasks.nli import NLI
from instil.tasks.paraphrase import Paraphrase
from instil.tasks.sentiment import Sentiment
from instil.tasks.topic import Topic

LabelTask = NLI | Paraphrase | Sentiment | Topic | Classification
TextTask = GSM8K | Files
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
    "Files",
    "LabelTask",
    "Paraphrase",
    "Sentiment",
    "Task",
    "TaskData",
    "TextTask",
    "Topic",
]
