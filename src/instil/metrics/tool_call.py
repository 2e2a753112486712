"""Calls of tools, as models write them."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from instil.metrics.json_text import _same
from instil.metrics.registry import metric


def calls(text: str) -> list[tuple[str, Any]]:
    """The calls in a text: every JSON object with a name, and with `arguments` or `parameters`.

    Returns:
        Name and arguments of each call.
    """
    found, place, decoder = list[tuple[str, Any]](), 0, json.JSONDecoder()
    while (place := text.find("{", place)) >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except ValueError:
            place += 1
            continue
        call = _call(value)
        if call is not None:
            found.append(call)
            place = end
        else:
            place += 1  # a call may lie within
    return found


def _call(value: Any) -> tuple[str, Any] | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    for key in ("arguments", "parameters"):
        if key in value:
            arguments = value[key]
            if isinstance(arguments, str):
                with suppress(ValueError):
                    arguments = json.loads(arguments)
            return value["name"], arguments
    return None


@metric("tool_call")
def tool_call(written: str, expected: str) -> bool:
    """Whether an answer calls the same tools with the same arguments, in the same order.

    If the gold answer calls none, an answer is right that calls none either.
    """
    one, two = calls(written), calls(expected)
    return len(one) == len(two) and all(
        mine[0] == theirs[0] and _same(mine[1], theirs[1])
        for mine, theirs in zip(one, two, strict=True)
    )


def _tool(value: Any) -> str | bool:
    if value is True or (isinstance(value, str) and value.strip()):
        return value
    raise ValueError("the name of a tool is expected, or true for any tool")


@metric("calls_tool", compares=False, reads=_tool)
def calls_tool(written: str, expected: str | bool) -> bool:
    """Whether an answer calls this tool, or any tool for `true`."""
    names = [name for name, _ in calls(written)]
    return bool(names) if expected is True else expected in names
