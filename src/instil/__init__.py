"""instil: bake a prompt into a language model's weights, with a report that proves it.

`distill` bakes a context into an adapter and returns a `Run`. `run` compares methods as a recipe
says and returns a `Study`. `validate` checks a recipe. `load` opens a finished run or study.

Each name here is imported when it is first used, so `import instil` is fast. The modules
`instil.losses`, `instil.tasks`, `instil.results` and `instil.models.tuning` are public too. All
other modules may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instil.api import Run, Study, distill, load, run, validate
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
    "Study": "api",
    "distill": "api",
    "load": "api",
    "read_rows": "tasks.rows",
    "run": "api",
    "validate": "api",
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
    "Study",
    "__version__",
    "distill",
    "load",
    "read_rows",
    "run",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("instil")
    if name not in _HOMES:
        raise AttributeError(f"module 'instil' has no attribute {name!r}")
    return getattr(import_module(f"instil.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
