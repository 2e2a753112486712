"""instil: bake a prompt into a language model's weights, with a report that proves it.

The names here load what they need when they are first used: importing the package costs nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instil.api import Run, distill
    from instil.errors import InstilError
    from instil.pipeline.student import Student
    from instil.prompts.context import Context, Document, FewShot, Instruction
    from instil.recipe.recipe import Recipe
    from instil.results.schema import Results
    from instil.tasks.rows import Row, read_rows


_HOMES = {
    "Context": "prompts.context",
    "Document": "prompts.context",
    "FewShot": "prompts.context",
    "InstilError": "errors",
    "Instruction": "prompts.context",
    "Recipe": "recipe.recipe",
    "Results": "results.schema",
    "Row": "tasks.rows",
    "Run": "api",
    "Student": "pipeline.student",
    "distill": "api",
    "read_rows": "tasks.rows",
}

__all__ = [
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
    "__version__",
    "distill",
    "read_rows",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("instil")
    if name not in _HOMES:
        raise AttributeError(f"module 'instil' has no attribute {name!r}")
    return getattr(import_module(f"instil.{_HOMES[name]}"), name)
