"""Renders the rows of a cell for its models, and leaves out rows that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from instil.errors import ContextError, DataFileError
from instil.models.roles import Models
from instil.pipeline.rows import CellRows
from instil.prompts.checks import Checks
from instil.prompts.context import Context
from instil.prompts.format import PromptFormat
from instil.prompts.rendered import UNKNOWN_LENGTH, RenderedRows
from instil.prompts.windows import Sieve, Windows
from instil.recipe.canonical import reads_context
from instil.recipe.recipe import Recipe
from instil.results.logs import Dropped
from instil.tasks.files import ROWS
from instil.tasks.rows import Row
from instil.tasks.split import EvaluationSet


class Rendering:
    """Renders sets of rows for teacher and student.

    Attributes:
        checks: Checks of the prompts.
        windows: Windows of the models.
        dropped: Rows that were left out.

    Args:
        recipe: All settings.
        rows: The rows of the cell.
        models: Teacher and student.
        form: Prompt format.
    """

    def __init__(self, recipe: Recipe, rows: CellRows, models: Models, form: PromptFormat) -> None:
        self.checks = Checks(form)
        self.windows = Windows.of(models.teacher, models.student)
        self.dropped: list[Dropped] = []
        self._recipe, self._rows, self._models, self._form = recipe, rows, models, form
        self._sieve: Sieve | None = None
        if rows.given is not None and rows.given.drops:
            room = recipe.teacher.max_new_tokens or UNKNOWN_LENGTH
            self._sieve = Sieve(self.windows, room, self.dropped)

    def rows(self, what: str, rows: Sequence[Row], *, gold: bool = True) -> RenderedRows:
        """Renders a set.

        Args:
            what: Name for a row of the set in messages.
            rows: The rows.
            gold: Whether gold completions are needed.

        Raises:
            InstilError: a row cannot be read, or none can.
        """
        alone = self._rows.alone
        contexts: Any = alone
        if reads_context(self._recipe):
            contexts = self._rows.contexts.contexts(0, rows, what)
        made = RenderedRows.of(
            what, rows, self._form, contexts, gold=gold, student=alone, sieve=self._sieve
        )
        if not made.rows:
            raise DataFileError(
                f"none of the {len(rows):,} rows can be read",
                got=self.dropped[-1].what if self.dropped else "",
                mend="use a model with a longer window, or another template",
            )
        _check_context(made, contexts, alone)
        made.check_ids(self._models.teacher, self._models.student)
        self.checks.rows(what, made.rows, contexts, made.gold)
        return made

    def of_set(self, held_out: EvaluationSet) -> tuple[EvaluationSet, RenderedRows]:
        """Renders an evaluation set; returns it with the rows that can be read."""
        what = "evaluation row" if held_out.name == ROWS else held_out.name
        made = self.rows(what, held_out.rows)
        return replace(held_out, rows=made.rows), made


def _check_context(rows: RenderedRows, contexts: Any, student: Context) -> None:
    """Refuses a context that the teacher does not read: its prompt would be the student's.

    Args:
        rows: Rendered rows of a set.
        contexts: The teacher's context, of all rows or of each row.
        student: What the student reads, too.

    Raises:
        ContextError: a context is left out. The message has the row.
    """
    first = contexts if isinstance(contexts, Context) else contexts[0]
    if first in (student, replace(student, hides_tools=False), Context()):
        return
    if rows.teacher_prompts[0] == rows.student_prompts[0]:
        raise ContextError(
            f"{rows.name} 1: the teacher's prompt is the student's: the chat template leaves out the "
            "context, so there is nothing to learn",
            mend="pass --format plain, or use a model whose template has a system turn",
        )
