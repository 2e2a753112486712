"""The base classes of tasks with free-text answers."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

from pydantic import Field

from instil.errors import FieldError
from instil.tasks.base import PatternTask, TaskBase, some
from instil.tasks.pattern import Pattern, names, render
from instil.tasks.records import Fields, Records, with_fields
from instil.tasks.rows import Row, make_rows
from instil.tasks.source import TextSet


class FreeText(TaskBase):
    """A task with free-text answers, and a rule for which of them are right."""

    answers: ClassVar[Literal["labels", "text"]] = "text"

    @abstractmethod
    def right(self, written: str, gold_output: str) -> bool:
        """Whether an answer is right.

        Args:
            written: The answer.
            gold_output: The row's output, with its reasoning.
        """

    @abstractmethod
    def result(self, text: str) -> str:
        """The part of an answer that is compared, for example its final number; may be empty."""


class QuestionTask(FreeText, PatternTask):
    """A task with one pattern for the question and one for the gold answer."""

    pattern: Pattern = Field(
        "{question}", description="text of a row, with the names of its fields in braces"
    )

    @property
    def exemplar_count(self) -> int | None:
        """Number of demonstrations that the task itself has; None if they are sampled."""
        return None

    def exemplars(self) -> list[Row]:
        """The demonstrations that the task itself has, in order; empty if they are sampled.

        Raises:
            DataFileError: the file is missing or empty.
            DataFormatError: the file is malformed.
            FieldError: a row has no field of a needed name.
        """
        return []

    @abstractmethod
    def _output(self, answer: str, where: str) -> str:
        """The gold output in demonstrations and in training.

        Raises:
            FieldError: answers cannot be compared with it.
        """

    def _rows(self, name: str, read: Records, known: TextSet) -> list[Row]:
        """Renders a set."""
        if shown := names(self.pattern) & names(known.answer):
            raise FieldError(
                f"the pattern contains the field {min(shown)!r}, which holds the answer",
                mend="remove it from the pattern: a prompt must not show its own answer",
            )

        def made(fields: Fields, where: str) -> Row:
            question = render(known.question, fields, where)
            return Row(
                render(self.pattern, with_fields(fields, {"question": question}), where),
                self._output(render(known.answer, fields, where), where),
            )

        return some(make_rows(read, made), name)
