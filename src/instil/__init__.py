"""instil: bake a prompt into a language model's weights, with a report that proves it.

The names here load what they need when they are first used: importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instil.api import distill
    from instil.config import Recipe
    from instil.context import Context, Document, FewShot, Instruction
    from instil.errors import InstilError
    from instil.results import Results
    from instil.rows import Row, read_rows
    from instil.run import Run
    from instil.student import Student

__version__ = "0.1.0"

_HOMES = {
    "Context": "context",
    "Document": "context",
    "FewShot": "context",
    "InstilError": "errors",
    "Instruction": "context",
    "Recipe": "config",
    "Results": "results",
    "Row": "rows",
    "Run": "run",
    "Student": "student",
    "distill": "api",
    "read_rows": "rows",
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
    if name not in _HOMES:
        raise AttributeError(f"module 'instil' has no attribute {name!r}")
    return getattr(import_module(f"instil.{_HOMES[name]}"), name)
