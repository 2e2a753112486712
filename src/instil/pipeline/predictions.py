"""The answers of a method as they are written to a run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from instil.evaluation.answers import Answered
from instil.evaluation.fidelity import RowLikelihood
from instil.methods import MethodName
from instil.prompts.format import PromptFormat
from instil.results.schema import Ending, EvaluationRow, Message, Prediction
from instil.tasks.free_text import FreeText
from instil.tasks.rows import Row, answer_number


def predictions(
    task: FreeText,
    form: PromptFormat,
    name: str,
    rows: Sequence[Row],
    method: MethodName,
    written: Sequence[Answered],
    right: Sequence[bool | None],
    fidelity: Sequence[RowLikelihood] = (),
    values: Sequence[dict[str, float]] = (),
    rules: Sequence[dict[str, bool]] = (),
) -> list[Prediction]:
    """The answers of a method on one set, with the results that the task finds in them.

    Args:
        task: The task.
        form: The prompt format.
        name: Name of the set.
        rows: Its rows.
        method: The method.
        written: Its answer to each row.
        right: Whether each answer is right; None if its row has no output, and if the metric gives
            a number.
        fidelity: How close the method is to the teacher on each row; empty if not compared.
        values: Metrics with their values, for each answer; empty if there are no metrics.
        rules: Rules that apply, and whether each answer obeys them; empty if there are none.
    """
    lines, kl = [], [row.kl for row in fidelity]
    for number, (row, answer, correct) in enumerate(zip(rows, written, right, strict=True)):
        gold = row.output and form.spoken(row.output)
        expected = None if gold is None else task.result(gold)
        predicted = task.result(answer.text)
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
                text=answer.text,
                values=values[number] if values else {},
                rules=rules[number] if rules else {},
                tokens=len(answer.ids),
                ending=ending(answer),
                turn=answer_number(row),
                kl=max(0.0, fmean(kl[number])) if kl and kl[number] else None,
            )
        )
    return lines


def ending(answer: Answered) -> Ending:
    """How an answer ends."""
    if answer.finished:
        return "finished"
    return "repeats" if answer.repeats else "cut"


def evaluated(form: PromptFormat, name: str, rows: Sequence[Row]) -> list[EvaluationRow]:
    """The rows of a set as they are written to a run's folder.

    Args:
        form: The prompt format.
        name: Name of the set.
        rows: Its rows.
    """
    return [
        EvaluationRow(
            set=name,
            row=number,
            input=row.input,
            output=row.output and form.spoken(row.output),
            messages=[
                Message(role=one.role, content=one.content)
                for one in (row.turn.before if row.turn else ())
            ],
            turn=answer_number(row),
        )
        for number, row in enumerate(rows)
    ]
