"""What is wrong with a recipe, in words: unknown keys, wrong values, settings that a run does not read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from instil.tasks.free_text import WritingTask

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


def problem(recipe: type[BaseModel], settings: Mapping[str, Any], error: dict[str, Any]) -> str:
    """One pydantic error in one clause: where, what, and what was meant."""
    place = ".".join(_written(settings, error["loc"])) or "recipe"
    if error["type"] == "extra_forbidden":
        known = _keys_at(recipe, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{place}: unknown key; {hint}"
    if error["type"] == "union_tag_invalid":
        tag, known = error["ctx"]["tag"], re.findall(r"'(.*?)'", error["ctx"]["expected_tags"])
        near = difflib.get_close_matches(tag, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{place}: unknown name {tag!r}; {hint}known: {', '.join(known)}"
    if error["type"] == "union_tag_not_found":
        return f"{place}: give it a name (got {error['input']!r})"
    said = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:  # of several settings, which it names
        return f"{place}: {said}"
    if error["type"] == "literal_error":
        known = re.findall(r"'(.*?)'", error["ctx"]["expected"])
        near = difflib.get_close_matches(str(error["input"]), known, n=1)
        said += f"; did you mean {near[0]}?" if near else ""
    return f"{place}: {said} (got {error['input']!r})"


def _written(settings: Any, location: Sequence[str | int]) -> list[str]:
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


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation, of unions and sequences too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
