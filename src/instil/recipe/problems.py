"""Describes the problems of a recipe: unknown keys, wrong values, settings without effect."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from instil.errors import did_you_mean
from instil.recipe.sections import Prompt
from instil.tasks.base import TaskBase
from instil.tasks.files import Files

_SHOWN = reprlib.Repr()
"""Shows values in messages. It cuts those that are large or hold themselves."""
_SHOWN.maxlevel = 3
_SHOWN.maxdict = _SHOWN.maxlist = _SHOWN.maxtuple = 20
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200
_UNREAD_WITH_LABELS = (
    "prompt.pattern",
    "teacher.completions",
    "teacher.samples",
    "teacher.sampling_temperature",
    "teacher.max_new_tokens",
    "teacher.min_probability",
    "teacher.mass",
    "teacher.mass_per_draw",
    "teacher.targets",
    "teacher.engine",
    "teacher.store",
    "training.report_to",
    "training.until",
    "training.make_inputs",
    "evaluation.baselines",
    "evaluation.at_steps",
    "evaluation.validation_rows",
    "evaluation.general_prompts",
    "evaluation.metrics",
    "evaluation.prices",
    "evaluation.rules",
    "evaluation.engine",
)
_UNREAD_WITH_TEXT = (
    "demonstrations.balanced",
    "student.keep_layers",
    "teacher.contexts",
    "teacher.calibration",
)
_UNREAD_WITH_FILES = (
    "demonstrations",
    "training.rows",
    "evaluation.rows",
    "evaluation.rows_out_of_domain",
    *_UNREAD_WITH_TEXT,
)


def unread(recipe: BaseModel, task: TaskBase) -> list[str]:
    """Returns a clause for each setting that is set and has no effect with this task.

    Args:
        recipe: A `Recipe`.
        task: Its task.
    """
    keys: tuple[str, ...] = _UNREAD_WITH_LABELS
    kind = "with a classification task"
    if isinstance(task, Files):
        keys, kind = _UNREAD_WITH_FILES, "with the task files"
    elif task.answers == "text":
        keys = ("prompt.pattern", *_UNREAD_WITH_TEXT)
        kind = "with a task whose answers are free text"
    problems: list[str] = []
    for key in keys:
        section, _, field = key.partition(".")
        value, default = getattr(recipe, section), type(recipe).model_fields[section].default
        if field:
            value, default = getattr(value, field), getattr(default, field)
        if value == default:
            continue
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json", exclude_defaults=True)
        problems.append(f"{key}: has no effect {kind} (got {value!r})")
    return problems + _unread_in_format(cast(Any, recipe).prompt, task)


def _unread_in_format(prompt: Prompt, task: TaskBase) -> list[str]:
    """A clause for each setting of the other prompt format. With `auto`, the model decides."""
    format = prompt.format
    if format == "auto" and task.answers == "labels":
        format = "plain"
    if format == "auto":
        return []
    return [
        f"prompt.{key}: has no effect in the {format} format (got {getattr(prompt, key)!r})"
        for key in prompt.unread(format)
        if key != "pattern" or isinstance(task, Files)  # other tasks refuse it already
    ]


def problem(recipe: type[BaseModel], settings: Mapping[str, Any], error: ErrorDetails) -> str:
    """Describes one pydantic error in one clause: where it is, what is wrong, how to correct it.

    Args:
        recipe: Model that the settings were checked against.
        settings: The settings as the user wrote them.
        error: One of the validation errors.
    """
    location, value, context = error["loc"], error["input"], error.get("ctx", {})
    key = ".".join(_written(settings, location)) or "recipe"
    match error["type"]:
        case "extra_forbidden":
            known = _keys_at(recipe, location[:-1])
            return f"{key}: unknown key; {did_you_mean(str(location[-1]), known)}"
        case "union_tag_invalid":
            known = _quoted(context["expected_tags"])
            return f"{key}: unknown name {context['tag']!r}; {did_you_mean(context['tag'], known)}"
        case "missing":
            return f"{key}: is missing"
        case "union_tag_not_found":
            return f"{key}: the key `name` is missing (got {_SHOWN.repr(value)})"
        case "literal_error":
            known = _quoted(context["expected"])
            return f"{key}: unknown value {_SHOWN.repr(value)}; {did_you_mean(str(value), known)}"
        case "setting":  # a problem of one key, found by its section
            key = ".".join(_written(settings, [*location, context["key"]]))
            return f"{key}: {context['message']} (got {_SHOWN.repr(context['value'])})"
        case "string_type" if isinstance(value, bool | int | float | None):
            return (
                f"{key}: must be text (got {_SHOWN.repr(value)}); put text that YAML reads as a "
                "number, a truth value or nothing in quotation marks"
            )
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{key}: must be a section with keys of its own (got {_SHOWN.repr(value)})"
    message = error["msg"].removeprefix("Value error, ")
    # An error about several settings has no location. Its message names them.
    return f"{key}: {message} (got {_SHOWN.repr(value)})" if location else f"{key}: {message}"


def _quoted(text: str) -> list[str]:
    """Returns the words in quotation marks: pydantic lists the expected values in a sentence."""
    return re.findall(r"'(.*?)'", text)


def _written(settings: object, location: Sequence[str | int]) -> list[str]:
    """Returns the path of a value as the user wrote it.

    Pydantic's location also holds the tags of unions, and keys that a short form leaves out. They
    are removed.
    """
    path = []
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
        elif isinstance(settings, str | int | float):  # it has no parts, so this is a tag
            break
        path.append(str(part))
    return path


def _keys_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Returns the field names of the section at `location`.

    For a union without a known name, it returns the fields of all its members.
    """
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
    """Returns the models in an annotation, including those in unions and sequences."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
