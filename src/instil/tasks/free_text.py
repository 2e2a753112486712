"""What all tasks share whose answers are free text, not chosen from labels."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

from pydantic import Field

from instil.errors import FieldError
from instil.tasks.base import TaskBase, some
from instil.tasks.pattern import Pattern, names, render
from instil.tasks.rows import Row
from instil.tasks.source import Fields, TextSet


class FreeText(TaskBase):
    """A pattern that turns a row into a question, and a rule that tells a right answer from a wrong one."""

    answers: ClassVar[Literal["text"]] = "text"

    pattern: Pattern = Field("{question}", description="text of a row, its fields' names in braces")

    @abstractmethod
    def right(self, written: str, gold_output: str) -> bool:
        """Whether an answer is right.

        Args:
            written: The answer.
            gold_output: The row's output, reasoning and all.
        """

    @property
    def exemplar_count(self) -> int | None:
        """How many demonstrations come with the task; None where they are drawn from its training set."""
        return None

    def exemplars(self) -> list[Row]:
        """The demonstrations that come with the task, in their order; empty where they are drawn.

        Raises:
            DataFileError: their file is missing or empty.
            DataFormatError: it is malformed.
            FieldError: a row of it lacks a field.
        """
        return []

    @abstractmethod
    def _output(self, answer: str, where: str) -> str:
        """The gold output as it is shown and learnt from.

        Raises:
            FieldError: no answer could be compared with it.
        """

    def _rows(self, name: str, read: Fields, known: TextSet) -> list[Row]:
        """Renders a set."""
        if shown := names(self.pattern) & names(known.answer):
            raise FieldError(
                f"the pattern names {min(shown)!r}, the field that holds the answer",
                mend="take it out: a text that tells its answer asks nothing",
            )
        rows = []
        for where, fields in read:
            question = render(known.question, fields, where)
            rows.append(
                Row(
                    render(self.pattern, {**fields, "question": question}, where),
                    self._output(render(known.answer, fields, where), where),
                )
            )
        return some(rows, name)
