"""What teacher and student read in a row, piece by piece, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from instil.errors import ConfigError
from instil.models.load import Outline
from instil.pipeline.form import form_of
from instil.pipeline.given import Given, RowContexts, own_prompt
from instil.prompts.format import PromptFormat
from instil.recipe.recipe import Recipe
from instil.system.sequences import common
from instil.tasks.files import Files
from instil.tasks.rows import Row

Kind = Literal["context", "own", "said", "answer"]
KINDS: dict[Kind, str] = {
    "context": "only the teacher reads it",
    "own": "only the student reads it",
    "said": "both read it",
    "answer": "it is learnt",
}
"""What is done with a piece."""


@dataclass(frozen=True)
class Piece:
    """A part of a prompt.

    Attributes:
        kind: What is done with it.
        text: Its text; control tokens are shown.
        tokens: Number of its tokens.
    """

    kind: Kind
    text: str
    tokens: int


@dataclass(frozen=True)
class ShownTurn:
    """One answer and what stands before it.

    Attributes:
        title: Which answer it is.
        teacher: The teacher's prompt, and the answer.
        student: The same for the student.
        logged: The logged answer if the teacher writes its own; else None.
    """

    title: str
    teacher: list[Piece]
    student: list[Piece]
    logged: str | None


def show(recipe: Recipe, model: Outline, number: int) -> list[ShownTurn]:
    """Renders the answers of one row of the inputs.

    Args:
        recipe: Settings with the task `files`.
        model: The student, without its weights.
        number: Number of the row, from 1, without the rows that are left out.

    Raises:
        ConfigError: there is no such row.
        InstilError: the file is wrong, or the template cannot render the row.
    """
    task = recipe.task
    assert isinstance(task, Files)
    given, form = Given.read(recipe, task), form_of(recipe, model)
    contexts = RowContexts(given.context, task.context_from_logs)
    units = [*_units(given.inputs)]
    if not 1 <= number <= len(units):
        raise ConfigError(
            f"--row {number}: there is no such row",
            allowed=f"1 to {len(units)}",
            mend="rows that are left out are not counted",
        )
    rows = units[number - 1]
    gold = recipe.teacher.completions == "gold"
    shown = []
    for place, row in enumerate(rows, 1):
        (context,) = contexts.contexts(0, [row], "inputs")
        teacher, student = form.prompt_ids(row, context), form.prompt_ids(row, own_prompt(task))
        ids = form.completion_ids(row) if gold else None
        title = f"answer {place} of {len(rows)}" if row.turn else "the row"
        shown.append(
            ShownTurn(
                title,
                _pieces(form, teacher, student, ids, "context"),
                _pieces(form, student, teacher, ids, "own"),
                None if gold else row.output,
            )
        )
    return shown


def _units(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each conversation, and each single turn."""
    unit: list[Row] = []
    for row in rows:
        if unit and (row.conversation is None or row.conversation != unit[-1].conversation):
            yield unit
            unit = []
        unit.append(row)
    if unit:
        yield unit


def _pieces(
    form: PromptFormat, prompt: list[int], other: list[int], answer: list[int] | None, alone: Kind
) -> list[Piece]:
    """A prompt in pieces: what both sides begin with, what only this side reads, and the rest."""
    one, two = np.array(prompt, np.int32), np.array(other, np.int32)
    start = common(one, two)
    end = common(one[start:][::-1], two[start:][::-1])
    cut = len(prompt) - end
    parts: list[tuple[Kind, list[int]]] = [
        ("said", prompt[:start]),
        (alone, prompt[start:cut]),
        ("said", prompt[cut:]),
        ("answer", answer or []),
    ]
    made = [Piece(kind, form.tokens.text(ids), len(ids)) for kind, ids in parts if ids]
    return made if answer else [*made, Piece("answer", "", 0)]
