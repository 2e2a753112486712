"""Which settings of a recipe each kind of run does not read: they are refused, so that nobody waits for them to do something."""

from __future__ import annotations

from pydantic import BaseModel

from instil.task.writing import WritingTask

_UNREAD_WITH_TASK = (
    "context",
    "data",
    "prompt.pattern",
    "teacher.completions",
    "teacher.samples",
    "teacher.sampling_temperature",
    "teacher.max_new_tokens",
    "teacher.min_probability",
    "teacher.mass",
    "teacher.mass_per_draw",
    "teacher.store",
    "training.report_to",
    "evaluation.at_steps",
    "evaluation.validation_rows",
)
_UNREAD_WITH_WRITING = (
    "context",
    "data",
    "prompt.pattern",
    "demonstrations.balanced",
    "teacher.contexts",
    "teacher.calibration",
)
_ONLY_WITH_TASK = (
    "method",
    "demonstrations",
    "student",
    "teacher.contexts",
    "teacher.calibration",
    "training.rows",
    "evaluation.rows",
    "evaluation.rows_out_of_domain",
    "evaluation.at_steps",
    "evaluation.validation_rows",
)


def unread(recipe: BaseModel, task: object | None) -> list[str]:
    """What is set and not read, in a clause each.

    Args:
        recipe: A `config.Recipe`.
        task: Its task; None: its context and its rows come from files.
    """
    places: tuple[str, ...] = _UNREAD_WITH_TASK
    kind = "with a classification task"
    if task is None:
        places, kind = _ONLY_WITH_TASK, "without a task"
    elif isinstance(task, WritingTask):
        places, kind = _UNREAD_WITH_WRITING, "with a task whose answers are written"
    found: list[str] = []
    for place in places:
        section, _, field = place.partition(".")
        value, plain = getattr(recipe, section), type(recipe).model_fields[section].default
        if field:
            value, plain = getattr(value, field), getattr(plain, field)
        if value == plain:
            continue
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json", exclude_defaults=True)
        found.append(f"{place}: not read {kind} (got {value!r})")
    return found
