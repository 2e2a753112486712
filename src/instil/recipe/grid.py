"""A recipe file: settings, and a grid of those that vary. It results in a list of cells, each a whole recipe.

Two combinations that would be the same run are one cell: zero-shot answers do not depend on the learning rate.
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
from typing_extensions import override as overrides

from instil.errors import ConfigError, InstilError
from instil.recipe.canonical import cell_digest, effective
from instil.recipe.recipe import Recipe, default_names
from instil.tasks.rows import read_text

LONGEST_NAME = 80  # characters of a cell's folder, its digest left out
FILE_ONLY = ("title", "description", "grid")


class RecipeFile(Recipe):
    """A recipe as it stands in a YAML file."""

    title: str = Field("", description="heads the report")
    description: str = Field("", description="what the study asks")
    grid: dict[str, list[Any]] | list[dict[str, list[Any]]] = Field(
        {},
        description="keys of the recipe, dots between their parts, with the values to try: all combinations; "
        "of a list of grids, the combinations of each",
    )


@dataclass(frozen=True)
class PlannedCell:
    """One run of a study.

    Attributes:
        name: Of its folder.
        varied: The grid's keys that make a difference to it, with its values.
        recipe: All its settings.
    """

    name: str
    varied: dict[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Plan:
    """A study before it is run.

    Attributes:
        title: Heads the report.
        description: What the study asks.
        settings: The recipe file's content, with what was set on the command line.
        varied: The grid's keys.
        cells: In the grid's order.
    """

    title: str
    description: str
    settings: dict[str, Any]
    varied: list[str]
    cells: list[PlannedCell]


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: the first one would be lost without a word."""

    @overrides
    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as written: what is merged in comes later
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads a recipe file's settings.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        ConfigError: it is not a YAML mapping; names the line.
    """
    try:
        settings = yaml.load(read_text(path), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path} is not YAML",
            got=" ".join(str(error).replace('in "<unicode string>", ', "in ").split()),
            mend="mend the line; a text with ': ' or '#' in it needs quotation marks",
        ) from None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path} is not a mapping of settings",
            got=type(settings).__name__,
            allowed="model: …, task: …, and so on",
            mend="see `instil recipes list` for examples",
        )
    return settings


def override(settings: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Applies `a.b=value` in their order; a value is YAML, so `seed=[0,1]` is a list.

    What follows `grid.` is one key of the grid, dots included.

    Raises:
        ConfigError: a change has no `=`, its value is not YAML, or the grid would put its own in its place.
    """
    made = copy.deepcopy(dict(settings))
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"--set {change}: no KEY=VALUE", allowed="for example --set training.max_steps=30"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"--set {change}: the value is not YAML", got=" ".join(str(error).split())
            ) from None
        if key.startswith("grid."):
            for grid in _grids(made.setdefault("grid", {})):
                grid[key.removeprefix("grid.")] = value
        else:
            _put(made, key, value)
    varied = {key for grid in _grids(made.get("grid", {})) for key in grid}
    for change in changes:
        key = change.partition("=")[0]
        for over in sorted(varied):
            if f"{key}.".startswith(f"{over}."):
                raise ConfigError(
                    f"--set {change}: the grid varies {over}, and its values would stand in place of this one",
                    mend=f"change the grid: --set grid.{over}=[…]",
                )
    return made


def plan(settings: Mapping[str, Any]) -> Plan:
    """Turns a recipe file's settings into cells.

    Raises:
        ConfigError: names every problem of every cell once.
    """
    base = {name: value for name, value in settings.items() if name not in FILE_ONLY}
    grids = _grids(settings.get("grid", {}))
    problems = [
        f"grid.{key}: an empty list, or no list (got {values!r})"
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
    # What is wrong with a list does not hide what is wrong elsewhere.
    sound = [{k: v for k, v in grid.items() if isinstance(v, list) and v} for grid in grids]
    grid = _Grid(base, sound)
    for combination in _combinations(sound):
        found = grid.cell(combination)
        problems += found.problems
        # Another combination may have resulted in the same run.
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
    )


def _grids(grid: Any) -> list[dict[str, Any]]:
    grids = grid if isinstance(grid, list) else [grid]
    for one in grids:
        if not isinstance(one, dict):
            raise ConfigError(
                "grid: not a mapping of keys to lists",
                got=repr(one),
                allowed="for example grid: {seed: [0, 1, 2]}, or a list of such mappings",
            )
        for key in one:
            if not isinstance(key, str):
                raise ConfigError(
                    "grid: a key that is no text",
                    got=repr(key),
                    mend="put it in quotation marks; YAML reads on, yes and numbers otherwise",
                )
    return grids


def _combinations(grids: Sequence[Mapping[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    for grid in grids:
        for values in product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


@dataclass(frozen=True)
class _Found:
    """What a combination of the grid's values results in.

    Attributes:
        recipe: With what its method does not read set to defaults; None if it is not valid.
        digest: Equal for combinations that are the same run; None if the recipe is not valid.
        problems: What is wrong with it.
    """

    recipe: Recipe | None
    digest: str | None
    problems: list[str]


class _Grid:
    """The combinations of a recipe's grids, each parsed once.

    Args:
        base: The recipe's settings without the grids.
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
        """What a combination results in."""
        called = repr(sorted(combination.items(), key=lambda item: item[0]))
        if called not in self._found:
            self._found[called] = self._parsed(combination)
        return self._found[called]

    def matters(self, combination: Mapping[str, Any], key: str) -> bool:
        """Whether another of the key's values, or none, would make it another run."""
        digest = self.cell(combination).digest
        others = [{**combination, key: value} for value in self._tried[key]]
        others.append({name: value for name, value in combination.items() if name != key})
        return any(self.cell(other).digest != digest for other in others)

    def _parsed(self, combination: Mapping[str, Any]) -> _Found:
        settings = dict(self._base)
        problems: list[str] = []
        # A section comes before its settings.
        for key in sorted(combination, key=lambda key: key.count(".")):
            try:
                _put(settings, key, _completed(settings, key, combination[key]))
            except ConfigError as error:
                problems.append(str(error))
        parsed, found = Recipe.check(settings, file=RecipeFile)
        problems += found
        if parsed is None or problems:
            return _Found(None, None, problems)
        recipe = effective(parsed)
        try:
            return _Found(recipe, cell_digest(recipe), [])
        except InstilError as error:  # of a file that it names
            return _Found(recipe, None, [str(error)])


def _completed(settings: Mapping[str, Any], key: str, value: object) -> object:
    """A value of the grid; a section that is not of another name keeps what the recipe says of its other keys."""
    there = settings.get(key)
    if not (isinstance(value, dict) and isinstance(there, dict)):
        return value
    name = there.get("name", default_names(settings).get(key))
    return {**there, **value} if value.get("name", name) == name else value


def _put(settings: dict[str, Any], key: str, value: object) -> None:
    """Sets a nested key; the sections on its way are copied, or made where they are missing or null."""
    *sections, last = key.split(".")
    for section in sections:
        inner = settings.get(section)
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(
                f"{key}: {section} is a value and has no keys of its own", got=repr(inner)
            )
        made = {} if inner is None else dict(inner)
        settings[section] = made
        settings = made
    settings[last] = value


def _checked(value: object, key: str, recipe: Recipe) -> object:
    """A value as the recipe has understood it: YAML reads 1e-4 as text."""
    found: object = recipe.model_dump(mode="json")
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else value


def _readable(varied: Mapping[str, Any]) -> str:
    """The part of a folder's name that a person can read."""
    words = [
        str(value) if key == "method" else f"{key.rpartition('.')[2]}={_short(value)}"
        for key, value in varied.items()
    ]
    return re.sub(r"[^\w.=+,-]+", "_", ",".join(words))[:LONGEST_NAME] or "cell"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "+".join(str(v) if k == "name" else f"{k}{_short(v)}" for k, v in value.items())
    if isinstance(value, list) and value and isinstance(value[0], dict):  # losses of a sum
        return ",".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
