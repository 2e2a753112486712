"""The public names: those that may not change without a word in the changelog."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import instil
from instil.recipe.recipe import Recipe

PUBLIC = [
    "Context",
    "Document",
    "FewShot",
    "InstilError",
    "Instruction",
    "Recipe",
    "Results",
    "Row",
    "Run",
    "Student",
    "Study",
    "__version__",
    "distill",
    "load",
    "read_rows",
    "run",
    "validate",
]


def test_all_lists_the_public_names() -> None:
    assert instil.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC
    assert dir(instil) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(instil, name)
    if name != "__version__":
        assert value.__name__ == name
        assert inspect.getdoc(value)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(instil.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {name: f"instil.{module}" for name, module in instil._HOMES.items()}
    assert sorted([*imported, "__version__"]) == PUBLIC


LOADING = {"quantization", "device_map", "attn_implementation"}
"""How weights are loaded is changed by the argument `set`, as on the command line."""


def test_no_module_hides_a_public_name() -> None:
    modules = {path.stem for path in Path(instil.__file__).parent.iterdir()}
    assert not modules & set(PUBLIC)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        instil.train  # noqa: B018


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("run", LOADING),
        ("validate", LOADING),
        # They have one value there: the task `files`, which has no demonstrations to draw, and its student.
        ("distill", {"task", "method", "demonstrations"} | LOADING),
    ],
)
def test_every_section_of_the_recipe_is_a_named_argument(name: str, left_out: set[str]) -> None:
    parameters = inspect.signature(getattr(instil, name)).parameters
    assert set(Recipe.model_fields) - set(parameters) == left_out
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values())
