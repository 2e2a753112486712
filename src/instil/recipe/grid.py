"""Turns a recipe file, which holds settings and a grid, into a list of cells.

Each cell is a complete recipe. Two combinations that would be the same run become one cell: for
example, zero-shot answers do not depend on the learning rate.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from instil.errors import ConfigError, InstilError
from instil.recipe.canonical import cell_digest, effective, unread_settings
from instil.recipe.recipe import Recipe, default_names
from instil.recipe.sections import FORMAT_KEYS
from instil.recipe.text import read_setting, read_yaml
from instil.tasks.text_files import read_text

LONGEST_NAME = 80  # characters in the name of a cell's folder, without the digest
FILE_ONLY = ("title", "description", "grid")


class RecipeFile(Recipe):
    """A recipe as written in a YAML file."""

    title: str = Field("", description="Title of the report.")
    description: str = Field("", description="Question that the study answers.")
    grid: dict[str, list[Any]] | list[dict[str, list[Any]]] = Field(
        {},
        description="Keys of the recipe, such as `training.rows`, with the values to try. All "
        "combinations are run. For a list of grids, all combinations of each grid are run.",
    )


@dataclass(frozen=True)
class PlannedCell:
    """One run of a study.

    Attributes:
        name: Name of its folder.
        varied: The keys of the grid that affect this cell, with their values.
        recipe: All its settings.
    """

    name: str
    varied: dict[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Plan:
    """A study before it is run.

    Attributes:
        title: Title of the report.
        description: Question that the study answers.
        settings: Content of the recipe file, with the changes from the command line.
        varied: Keys of the grid.
        cells: Cells in the order of the grid.
        unread: Keys that are set outside the grid, and that no cell reads.
    """

    title: str
    description: str
    settings: dict[str, Any]
    varied: list[str]
    cells: list[PlannedCell]
    unread: list[str]


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads a recipe file's settings.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        ConfigError: it is not a YAML mapping; the message names the line.
    """
    text = read_text(path)
    try:
        settings = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path} is not YAML",
            got=_told(error),
            mend="correct this line; text that contains ': ' or '#' needs quotation marks",
        ) from None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path} is not a mapping of settings",
            got="nothing" if settings is None else type(settings).__name__,
            allowed="a mapping such as model: …, task: …",
            mend="copy an example; `instil recipes list` shows them",
        )
    return settings


def _told(error: yaml.YAMLError) -> str:
    """Returns what pyyaml says, in one line."""
    return " ".join(str(error).replace('in "<unicode string>", ', "in ").split())


def override(settings: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Applies changes such as `a.b=value`, in their order.

    A value is YAML, so `seed=[0,1]` is a list. After `grid.` comes one key of the grid, which may
    contain dots.

    Raises:
        ConfigError: a change has no `=`, its value is not YAML, or the grid varies its key.
    """
    changed = copy.deepcopy(dict(settings))
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"--set {change}: not of the form KEY=VALUE",
                allowed="for example --set training.max_steps=30",
            )
        try:
            value = read_setting(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"--set {change}: the value is not YAML, or YAML would change it",
                got=_told(error),
                mend="put the value in quotation marks inside those of the shell",
            ) from None
        if key.startswith("grid."):
            for grid in _grids(changed.setdefault("grid", {})):
                grid[key.removeprefix("grid.")] = value
        else:
            _put(changed, key, value)
    for change in changes:
        if over := varied_above(changed, change.partition("=")[0]):
            raise ConfigError(
                f"--set {change}: the grid varies {over}, so its values would replace this one",
                mend=f"change the grid instead: --set grid.{over}=[…]",
            )
    return changed


def varied_above(settings: Mapping[str, Any], key: str) -> str | None:
    """Returns the key of the grid that varies this setting or a section around it, or None.

    Args:
        settings: Content of a recipe file.
        key: Key of the setting, with dots between its parts.
    """
    varied = {key for grid in _grids(settings.get("grid", {})) for key in grid}
    return next((over for over in sorted(varied) if f"{key}.".startswith(f"{over}.")), None)


def plan(settings: Mapping[str, Any]) -> Plan:
    """Turns the settings of a recipe file into cells.

    Raises:
        ConfigError: there are problems; the message names every problem of every cell once.
    """
    base = {name: value for name, value in settings.items() if name not in FILE_ONLY}
    grids = _grids(settings.get("grid", {}))
    problems = [
        f"grid.{key}: must be a list with at least one value (got {values!r})"
        for grid in grids
        for key, values in grid.items()
        if not isinstance(values, list) or not values
    ]
    problems += [
        f"{name}: must be text (got {settings[name]!r})"
        for name in ("title", "description")
        if not isinstance(settings.get(name, ""), str)
    ]
    cells: dict[str, PlannedCell] = {}
    unread: frozenset[str] | None = None
    # Keys with such a problem are left out, so that the rest is checked too.
    valid = [{k: v for k, v in grid.items() if isinstance(v, list) and v} for grid in grids]
    grid = _Grid(base, valid)
    for combination in _combinations(valid):
        found = grid.cell(combination)
        problems += found.problems
        unread = found.unread if unread is None else unread & found.unread
        # An earlier combination may be the same run.
        if found.recipe is not None and found.digest is not None and found.digest not in cells:
            varied = {
                key: _checked(value, key, found.recipe)
                for key, value in combination.items()
                if grid.matters(combination, key)
            }
            name = f"{_readable(varied)}-{found.digest}"
            cells[found.digest] = PlannedCell(name, varied, found.recipe)
    if problems:
        raise ConfigError.listing(list(dict.fromkeys(problems)))
    return Plan(
        title=settings.get("title", ""),
        description=settings.get("description", ""),
        settings=dict(settings),
        varied=list(dict.fromkeys(key for grid in grids for key in grid)),
        cells=list(cells.values()),
        unread=[key for key in sorted(unread or ()) if varied_above(settings, key) is None],
    )


def _grids(grid: Any) -> list[dict[str, Any]]:
    grids = grid if isinstance(grid, list) else [grid]
    for mapping in grids:
        if not isinstance(mapping, dict):
            raise ConfigError(
                "grid: not a mapping of keys to lists",
                got=repr(mapping),
                allowed="for example grid: {seed: [0, 1, 2]}, or a list of such mappings",
            )
        for key in mapping:
            if not isinstance(key, str):
                raise ConfigError(
                    "grid: a key is not text",
                    got=repr(key),
                    mend="put it in quotation marks; YAML reads on, yes and digits as other types",
                )
    return grids


def _combinations(grids: Sequence[Mapping[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    for grid in grids:
        for values in product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


@dataclass(frozen=True)
class _Found:
    """The recipe of one combination of the grid's values, or its problems.

    Attributes:
        recipe: Recipe with defaults for all that its method does not use. None: it is not valid.
        digest: Equal for combinations that are the same run. None: the recipe is not valid.
        problems: All problems of the recipe, one clause each.
        unread: Keys that are set, and that it does not read.
    """

    recipe: Recipe | None
    digest: str | None
    problems: list[str]
    unread: frozenset[str] = frozenset()


class _Grid:
    """The combinations of a recipe's grids. Each combination is parsed once.

    Args:
        base: Settings of the recipe without its grids.
        grids: Keys with the values to try.
    """

    def __init__(self, base: Mapping[str, Any], grids: Sequence[Mapping[str, list[Any]]]) -> None:
        self._base = base
        self._tried: dict[str, list[Any]] = {}
        for grid in grids:
            for key, values in grid.items():
                self._tried.setdefault(key, []).extend(values)
        self._found: dict[str, _Found] = {}

    def cell(self, combination: Mapping[str, Any]) -> _Found:
        """Returns the recipe of a combination, or its problems."""
        text = repr(sorted(combination.items(), key=lambda item: item[0]))
        if text not in self._found:
            self._found[text] = self._parsed(combination)
        return self._found[text]

    def matters(self, combination: Mapping[str, Any], key: str) -> bool:
        """Whether the run would differ with another value of this key, or without the key."""
        digest = self.cell(combination).digest
        others = [{**combination, key: value} for value in self._tried[key]]
        others.append({name: value for name, value in combination.items() if name != key})
        return any(self.cell(other).digest != digest for other in others)

    def _parsed(self, combination: Mapping[str, Any]) -> _Found:
        settings = dict(self._base)
        problems: list[str] = []
        # Sections are set before the settings in them.
        for key in sorted(combination, key=lambda key: key.count(".")):
            try:
                _put(settings, key, completed(settings, key, combination[key]))
            except ConfigError as error:
                problems.append(str(error))
        if {"prompt", "prompt.format"} & set(self._tried):
            settings["prompt"] = _of_its_format(settings.get("prompt", {}))
        parsed, found = Recipe.check(settings, file=RecipeFile)
        problems += found
        if parsed is None or problems:
            return _Found(None, None, problems)
        recipe = effective(parsed)
        try:
            return _Found(
                recipe, cell_digest(recipe), [], frozenset(unread_settings(parsed, recipe))
            )
        except InstilError as error:  # a file that the recipe names is missing or wrong
            return _Found(recipe, None, [str(error)])


def _of_its_format(prompt: Any) -> Any:
    """Returns a prompt section without the settings that the cells of the other format read."""
    if not isinstance(prompt, dict):
        return prompt
    other = {"chat": "plain", "plain": "chat"}.get(str(prompt.get("format")), "")
    return {key: v for key, v in prompt.items() if key not in FORMAT_KEYS.get(other, ())}


def completed(settings: Mapping[str, Any], key: str, value: Any) -> Any:
    """Returns the new value of a key, completed from the recipe if the value is a section.

    The other keys of the section stay as they are in the recipe, unless the new value has another
    `name`.

    Args:
        settings: Settings of the recipe before the change.
        key: Key of a section or a setting.
        value: The new value.
    """
    current = settings.get(key)
    if not (isinstance(value, dict) and isinstance(current, dict)):
        return value
    name = current.get("name", default_names(settings).get(key))
    return {**current, **value} if value.get("name", name) == name else value


def _put(settings: dict[str, Any], key: str, value: object) -> None:
    """Sets a nested key. Sections on the way to it are copied, or created if missing or null."""
    *sections, last = key.split(".")
    for section in sections:
        inner = settings.get(section)
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(
                f"{key}: {section} is not a section, so it has no keys", got=repr(inner)
            )
        copied = {} if inner is None else dict(inner)
        settings[section] = copied
        settings = copied
    settings[last] = value


def _checked(value: object, key: str, recipe: Recipe) -> object:
    """Returns a value as the recipe has parsed it. For example, YAML reads 1e-4 as text."""
    found: object = recipe.model_dump(mode="json")
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else value


def _readable(varied: Mapping[str, Any]) -> str:
    """Returns the readable part of a folder's name."""
    words = [
        str(value) if key == "method" else f"{key.rpartition('.')[2]}={_short(value)}"
        for key, value in varied.items()
    ]
    return re.sub(r"[^\w.=+,-]+", "_", ",".join(words))[:LONGEST_NAME] or "cell"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "+".join(str(v) if k == "name" else f"{k}{_short(v)}" for k, v in value.items())
    if isinstance(value, list) and value and isinstance(value[0], dict):  # a list of losses
        return ",".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
