"""The recipes that come with the package: published comparisons, and studies that run on a CPU."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from instil.errors import ConfigError, did_you_mean


def shipped() -> dict[str, Path]:
    """Name -> file of every shipped recipe."""
    folder = Path(str(files("instil.recipe.shipped")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one.

    Raises:
        ConfigError: there is neither a file nor a shipped recipe of that name.
    """
    if Path(recipe).is_file():
        return Path(recipe)
    known = shipped()
    if recipe in known:
        return known[recipe]
    raise ConfigError(
        f"no recipe {recipe!r}: neither a file nor a shipped recipe",
        mend=did_you_mean(recipe, known),
    )
