"""Reads YAML as a person means it: what YAML 1.1 would change without a word is refused."""

from __future__ import annotations

import re
from typing import Any

import yaml
from typing_extensions import override

TIMESTAMP = "tag:yaml.org,2002:timestamp"
_TRAP = re.compile(r"[-+]?0[0-7_]+|[-+]?[0-9_]+:.*")
"""A number that YAML 1.1 reads with another base: 010 as 8, and 1:30 as 90."""


def read_yaml(text: str) -> Any:
    """Returns the value of a YAML text.

    Dates stay text. Refused are a key that occurs twice, and numbers such as 010 and 1:30.

    Raises:
        yaml.YAMLError: the text is not YAML, or it has such a key or number.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("the text is nested too deeply") from None


def read_setting(text: str) -> Any:
    """Returns the value of a setting that is given as text, such as `[0, 1]`.

    Raises:
        yaml.YAMLError: `read_yaml` refuses it, or YAML would drop a part of the text, such as
            white space at its ends or what stands after `#`.
    """
    value = read_yaml(text)
    if isinstance(value, str) and value != text and not text.startswith(("'", '"', "!", "&")):
        raise yaml.YAMLError(
            f"YAML reads this text as {value!r}; to keep it as it is, put it in quotation marks: "
            f"{_quoted(text)}"
        )
    return value


def _quoted(text: str) -> str:
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9)).strip()


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != TIMESTAMP]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    @override
    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # merge keys (<<) are not applied yet
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return node

    @override
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and _TRAP.fullmatch(str(node.value)):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{node.value} is a number with another base in YAML; write an ordinary number, or "
                "put the text in quotation marks",
                node.start_mark,
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, TypeError):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{str(node.value)[:40]!r} is no value of type {node.tag.rpartition(':')[2]}",
                node.start_mark,
            ) from None
