"""Reads a recipe from a name, a file, a mapping or an object, and changes its sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from instil.errors import ConfigError
from instil.recipe.grid import Plan, completed, override, plan, read_recipe, varied_above
from instil.recipe.recipe import Recipe
from instil.recipe.shipped import find


def planned(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    arguments: Mapping[str, Any],
    grid: object,
    changes: Sequence[str],
) -> Plan:
    """Returns the cells of a recipe, with changes.

    Args:
        recipe: Name of a shipped recipe, path of a recipe file, a mapping as in such a file, or a
            `Recipe`.
        arguments: Section or other setting of the recipe -> its new value. None: no change. A
            mapping changes the keys that it names. An object, or a mapping with another `name`,
            replaces the section.
        grid: Keys with the values to try, or a list of such grids. None: the recipe's own grid.
        changes: `KEY=VALUE`, as on the command line. They are applied last.

    Raises:
        ConfigError: the recipe has problems, or a change is to a key that the grid varies.
    """
    if isinstance(recipe, str | Path):
        settings = read_recipe(find(str(recipe)))
    else:
        settings = dict(plain(recipe))
    if grid is not None:
        settings["grid"] = plain(grid)
    for section in Recipe.model_fields:
        value = arguments.get(section)
        if value is None:
            continue
        mapping = isinstance(value, Mapping)
        for key in [f"{section}.{key}" for key in value] if mapping else [section]:
            if over := varied_above(settings, key):
                raise ConfigError(
                    f"{key}: the grid varies {over}, so its values would replace this one",
                    mend=f"change the grid instead: grid={{'{over}': […]}}",
                )
        content = plain(value)
        settings[section] = completed(settings, section, content) if mapping else content
    return plan(override(settings, changes))


def plain(value: Any) -> Any:
    """Returns a value as in a YAML file: sections, losses, tasks and tunings become mappings."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
