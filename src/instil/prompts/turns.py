"""The turns of a chat prompt: the context, what was said before, and the query."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from instil.prompts.context import Context, as_given
from instil.tasks.conversation import Message
from instil.tasks.rows import Row
from instil.tasks.thinking import MARKS

_NOT_FROM_DATA = ("role", "type")


def turns_of(query: Row | str, context: Context) -> list[Message]:
    """The messages of a prompt; the last one is the user's, or a tool's result.

    All texts of the system are one message, at the start. A text that the context and the
    conversation both hold is there once.

    Args:
        query: A row, or the text of a query.
        context: What is read before it.
    """
    row = query if isinstance(query, Row) else Row(query)
    said = row.turn.before if row.turn else (Message("user", row.input),)
    shown = [
        message
        for shot in context.demonstrations
        for message in (
            Message("user", shot.input),
            Message("assistant", as_given(shot.output or "")),
        )
    ]
    systems = [Message("system", context.preamble)] if context.preamble else []
    head_systems, head = _parted(context.head)
    said_systems, said = _parted(said)
    texts = [one.content for one in (*systems, *head_systems, *said_systems)]
    together = "\n\n".join(dict.fromkeys(texts))
    system = [Message("system", together)] if texts else []
    return [*system, *shown, *head, *said]


def folded(messages: Sequence[Message]) -> list[Message]:
    """The same messages for a template without a system turn: its text begins the user's first one."""
    systems, others = _parted(messages)
    if not systems:
        return [*messages]
    text = "\n\n".join(one.content for one in systems)
    first, *rest = others
    if first.role != "user":
        return [Message("user", text), *others]
    return [replace(first, content=f"{text}\n\n{first.content}"), *rest]


def tools_of(query: Row | str, context: Context) -> list[Any] | None:
    """The definitions of tools that stand in a prompt; None if there are none."""
    if context.hides_tools or not isinstance(query, Row) or query.turn is None:
        return None
    text = query.turn.conversation.tools
    tools = json.loads(text) if text else None
    return tools if isinstance(tools, list) and tools else None


def sent(message: Message, mark: Callable[[str], str]) -> dict[str, Any]:
    """A message in the form that templates read, with all its texts marked.

    Args:
        message: The message.
        mark: Marks the control tokens that a text spells.
    """
    made: dict[str, Any] = marked(message.sent(), mark)
    return made


def marked(value: Any, mark: Callable[[str], str]) -> Any:
    """A value with all its texts marked, but those that no data can choose."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, list):
        return [marked(one, mark) for one in value]
    if isinstance(value, dict):
        return {
            name: one if name in _NOT_FROM_DATA else marked(one, mark)
            for name, one in value.items()
        }
    return value


def with_thoughts(message: Message, marks: tuple[str, str] | None) -> Message:
    """An answer whose thinking is written in its content.

    Args:
        message: The answer.
        marks: What opens and closes the thinking; None: the usual marks.
    """
    if message.thinking is None:
        return message
    opening, closing = marks or MARKS[0]
    content = f"{opening}\n{message.thinking}\n{closing}\n\n{message.content}"
    return replace(message, content=content, thinking=None)


def _parted(messages: Sequence[Message]) -> tuple[list[Message], tuple[Message, ...]]:
    """The leading messages of the system, and the others."""
    count = 0
    while count < len(messages) and messages[count].role == "system":
        count += 1
    return [*messages[:count]], (*messages[count:],)
