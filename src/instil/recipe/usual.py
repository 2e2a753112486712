"""What `distill` sets if it is given nothing else. A recipe for `run` has other defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from instil.system import processes

BASELINES = ("zero_shot", "in_context")
"""The baselines that `distill` compares its student with."""


def usual(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the baselines, and the rule that ends the training, where the settings name none.

    A number of steps or epochs, or evaluations during the training, need no such rule. With FSDP,
    nothing can be measured during the training.

    Args:
        settings: Sections of a recipe, as mappings or objects.
    """
    steps = [("training", "max_steps"), ("training", "epochs"), ("evaluation", "at_steps")]
    made = _with(settings, "evaluation", "baselines", BASELINES)
    if processes.split_layers() or any(_value(settings, *key) is not None for key in steps):
        return made
    return _with(made, "training", "until", "plateau")


def _value(settings: Mapping[str, Any], section: str, key: str) -> Any:
    found = settings.get(section) or {}
    return found.get(key) if isinstance(found, Mapping) else getattr(found, key, None)


def _with(settings: Mapping[str, Any], section: str, key: str, value: Any) -> dict[str, Any]:
    """The settings with a value for a key that they do not name."""
    found = settings.get(section) or {}
    if isinstance(found, BaseModel):
        if key not in found.model_fields_set:
            found = found.model_copy(update={key: value})
    elif isinstance(found, Mapping):
        found = {key: value, **found}
    return {**settings, section: found}
