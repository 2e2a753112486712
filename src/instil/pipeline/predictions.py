"""The answers of a method as they are written to a run's folder."""

from __future__ import annotations

from collections.abc import Sequence

from instil.methods import MethodName
from instil.prompts.format import PromptFormat
from instil.results.schema import Prediction
from instil.tasks.free_text import FreeText
from instil.tasks.rows import Row


def predictions(
    task: FreeText,
    form: PromptFormat,
    name: str,
    rows: Sequence[Row],
    method: MethodName,
    written: Sequence[str],
    right: Sequence[bool | None],
) -> list[Prediction]:
    """The answers of a method on one set, with the results that the task finds in them.

    Args:
        task: The task.
        form: The prompt format.
        name: Name of the set.
        rows: Its rows.
        method: The method.
        written: Its answer to each row.
        right: Whether each answer is right; None if its row has no output.
    """
    lines = []
    for number, (row, text, correct) in enumerate(zip(rows, written, right, strict=True)):
        gold = row.output and form.spoken(row.output)
        expected = None if gold is None else task.result(gold)
        predicted = task.result(text)
        if correct and expected is not None:  # the same number may be written differently
            predicted = expected
        elif correct is False and predicted == expected:  # the answer lacks a required mark
            predicted = ""
        lines.append(
            Prediction(
                set=name,
                row=number,
                method=method,
                input=row.input,
                expected=expected,
                predicted=predicted,
                correct=correct,
                text=text,
            )
        )
    return lines
