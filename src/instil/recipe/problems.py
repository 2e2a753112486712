"""What is wrong with a recipe, in words: unknown keys, wrong values, settings that a run does not read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from instil.errors import did_you_mean
from instil.tasks.free_text import FreeText

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
_UNREAD_WITH_TEXT = (
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
    elif isinstance(task, FreeText):
        places, kind = _UNREAD_WITH_TEXT, "with a task whose answers are free text"
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


def problem(recipe: type[BaseModel], settings: Mapping[str, Any], error: ErrorDetails) -> str:
    """One pydantic error in one clause: where, what, and what was meant.

    Args:
        recipe: What the settings should have been.
        settings: As they were written.
        error: One of the errors that validating them gave.
    """
    location, given, context = error["loc"], error["input"], error.get("ctx", {})
    place = ".".join(_written(settings, location)) or "recipe"
    match error["type"]:
        case "extra_forbidden":
            known = _keys_at(recipe, location[:-1])
            return f"{place}: unknown key; {did_you_mean(str(location[-1]), known)}"
        case "union_tag_invalid":
            known = _quoted(context["expected_tags"])
            return (
                f"{place}: unknown name {context['tag']!r}; {did_you_mean(context['tag'], known)}"
            )
        case "union_tag_not_found":
            return f"{place}: give it a name (got {given!r})"
        case "literal_error":
            known = _quoted(context["expected"])
            return f"{place}: unknown value {given!r}; {did_you_mean(str(given), known)}"
    said = error["msg"].removeprefix("Value error, ")
    # What is wrong with several settings together names them.
    return f"{place}: {said} (got {given!r})" if location else f"{place}: {said}"


def _quoted(text: str) -> list[str]:
    """The words in quotation marks: pydantic lists what it expects in a sentence."""
    return re.findall(r"'(.*?)'", text)


def _written(settings: object, location: Sequence[str | int]) -> list[str]:
    """The way to a value as the settings have it: without the tags of unions, and the keys that sugar stands for."""
    way = []
    for depth, part in enumerate(location, 1):
        if isinstance(settings, Mapping):
            missing = depth == len(location) and part != settings.get("name")
            if part not in settings and not missing:
                continue
            settings = settings.get(part)
        elif isinstance(settings, list | tuple):
            if not isinstance(part, int):
                continue
            settings = settings[part] if part < len(settings) else None
        way.append(str(part))
    return way


def _keys_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The field names of the section that `location` leads to; of a union, those of all members that it does not name."""
    members = [model]
    for part in location:
        fields = [m.model_fields[part] for m in members if part in m.model_fields]
        if fields:
            members = [m for field in fields for m in _models(field.annotation)]
        else:
            tagged = [m for m in members if "name" in m.model_fields]
            members = [m for m in tagged if m.model_fields["name"].default == part] or members
    return list(dict.fromkeys(name for m in members for name in m.model_fields))


def _models(annotation: object) -> list[type[BaseModel]]:
    """The models in an annotation, of unions and sequences too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
