"""JSON in an answer: whether it is valid, the same, and how many of its values are the same."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instil.errors import ConfigError
from instil.metrics.arguments import yes
from instil.metrics.registry import Function, metric, needs
from instil.system.disk import from_home

_FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)


def parsed(text: str) -> Any:
    """The value of a text that is JSON, perhaps in a fence of Markdown.

    Raises:
        ValueError: it is no JSON, or it has a number that JSON does not know.
    """
    stripped = text.strip()
    if found := _FENCE.match(stripped):
        stripped = found[1]

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(stripped, parse_constant=refuse)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    if isinstance(one, int | float) and isinstance(two, int | float):
        return math.isclose(one, two, rel_tol=1e-9)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return type(one) is type(two) and one == two


@metric("json_valid", of_itself=False, reads=yes)
def json_valid(written: str, expected: object) -> bool:
    """Whether an answer is JSON, and nothing else."""
    try:
        parsed(written)
    except ValueError:
        return False
    return True


@metric("json_equal")
def json_equal(written: str, expected: str) -> bool:
    """Whether two texts are the same JSON. The order of keys and white space do not count."""
    try:
        return _same(parsed(written), parsed(expected))
    except ValueError:
        return False


def _fitting(path: str) -> Function:
    """`json_fields` of an answer that fits the JSON Schema of a file, and 0 of one that does not."""
    try:
        schema = _schema(json.loads(from_home(Path(path)).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"json_fields:{path}: the JSON Schema cannot be read",
            got=str(error),
            allowed="json_fields:FILE, a file with a JSON Schema",
        ) from error

    def function(written: str, expected: str) -> float:
        return json_fields(written, expected) if json_schema(written, schema) else 0.0

    return function


@metric("json_fields", given=_fitting)
def json_fields(written: str, expected: str) -> float:
    """F1 of the fields of two JSON texts: of all pairs of a path and a value.

    A path names keys. The order of a list does not count. It is 0 if the answer is no JSON. As
    `json_fields:FILE`, it is 0 as well if the answer does not fit the JSON Schema of the file.
    """
    try:
        one, two = Counter(_fields(parsed(written))), Counter(_fields(parsed(expected)))
    except ValueError:
        return 0.0
    both = sum((one & two).values())
    return 2 * both / (sum(one.values()) + sum(two.values()))


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from _fields(one, f"{path}/{key}")
    elif isinstance(value, list) and value:
        for one in value:
            yield from _fields(one, f"{path}/*")
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        yield path, repr(float(value)) if number else json.dumps(value)


def _schema(value: Any) -> Any:
    try:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for
    except ImportError as error:
        raise needs("jsonschema", "json_schema") from error
    if not isinstance(value, dict):
        raise ValueError("a JSON Schema is expected: keys such as type and properties")
    kind = validator_for(value)
    try:
        kind.check_schema(value)
    except SchemaError as error:
        raise ValueError(f"this is no JSON Schema: {error.message}") from error
    return kind(value)


@metric("json_schema", compares=False, reads=_schema)
def json_schema(written: str, expected: Any) -> bool:
    """Whether an answer is JSON that fits a JSON Schema."""
    try:
        return bool(expected.is_valid(parsed(written)))
    except ValueError:
        return False
