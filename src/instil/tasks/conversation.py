"""Conversations: messages of a system, a user, an assistant and its tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES = get_args(Role)
Turns = Literal["all", "last", "first"]
"""Which answers of the assistant are learnt."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, written by the assistant.

    Attributes:
        name: Name of the tool.
        arguments: Its arguments, as JSON text.
        id: What the tool's result refers to; None if the row names none.
    """

    name: str
    arguments: str
    id: str | None = None

    def sent(self) -> dict[str, Any]:
        """The call in the form that chat templates read."""
        try:
            arguments = json.loads(self.arguments)
        except ValueError:
            arguments = self.arguments
        call: dict[str, Any] = {
            "type": "function",
            "function": {"name": self.name, "arguments": arguments},
        }
        return {"id": self.id, **call} if self.id else call


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        role: Who writes it.
        content: Its text. It may be empty if tools are called.
        thinking: What the assistant thought before it answered; None if that is not known.
        tool_calls: The tools that the assistant calls.
        name: Name of the tool whose result this is.
        call: Id of the call whose result this is.
        learnt: Whether the student may learn this answer: not with `weight: 0`.
        logprobs: Log-probabilities that came with this answer (`instil.tasks.logprobs`); None if
            none did.
    """

    role: Role
    content: str
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    call: str | None = None
    learnt: bool = True
    logprobs: str | None = field(default=None, compare=False, repr=False)

    def sent(self) -> dict[str, Any]:
        """The message in the form that chat templates read."""
        made: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thinking is not None:
            made["reasoning_content"] = self.thinking
        if self.tool_calls:
            made["tool_calls"] = [call.sent() for call in self.tool_calls]
        if self.name is not None:
            made["name"] = self.name
        if self.call is not None:
            made["tool_call_id"] = self.call
        return made

    def facts(self) -> list[object]:
        """All of it as values for a digest."""
        calls = [[call.name, call.arguments, call.id] for call in self.tool_calls]
        return [self.role, self.content, self.thinking, calls, self.name, self.call]


@dataclass(frozen=True, eq=False, slots=True)
class Conversation:
    """A conversation, and the tools that the assistant may call.

    Attributes:
        messages: The messages. Those of the system come first.
        tools: Definitions of the tools, as JSON text; None if there are none.
        context: What only the teacher reads with this conversation; None for nothing.
        where: Its place, for messages to the user.
        head: Number of leading messages that belong to the context.
    """

    messages: tuple[Message, ...]
    tools: str | None = None
    context: str | None = None
    where: str = ""
    head: int = 0

    @property
    def system(self) -> int:
        """Number of system messages at its start."""
        count = 0
        while count < len(self.messages) and self.messages[count].role == "system":
            count += 1
        return count

    def answers(self, which: Turns, *, open_end: bool) -> list[int]:
        """Where answers are learnt: the numbers of messages after a user's or a tool's message.

        Args:
            which: Which of these answers.
            open_end: Whether a conversation may end with the user. Its answer then is the number
                after the last message.
        """
        found = [
            number
            for number in range(self.head + 1, len(self.messages) + open_end)
            if self.messages[number - 1].role in ("user", "tool")
            and (
                number == len(self.messages)
                or (self.messages[number].role == "assistant" and self.messages[number].learnt)
            )
        ]
        return {"all": found, "last": found[-1:], "first": found[:1]}[which]


@dataclass(frozen=True, eq=False, slots=True)
class Turn:
    """One answer of a conversation.

    Attributes:
        conversation: The conversation.
        number: Number of the answer among its messages.
    """

    conversation: Conversation
    number: int

    @property
    def before(self) -> tuple[Message, ...]:
        """The messages that teacher and student read before the answer, without the context."""
        return self.conversation.messages[self.conversation.head : self.number]

    @property
    def head(self) -> tuple[Message, ...]:
        """The leading messages that only the teacher reads."""
        return self.conversation.messages[: self.conversation.head]

    @property
    def answer(self) -> Message | None:
        """The logged answer; None if the conversation ends with the user."""
        messages = self.conversation.messages
        return messages[self.number] if self.number < len(messages) else None

    def facts(self) -> list[object]:
        """All that the models read, as values for a digest."""
        read = self.conversation.messages[: self.number + 1]
        whole = self.conversation
        return [[one.facts() for one in read], whole.tools, whole.context, whole.head]


def text_of(messages: Sequence[Message]) -> str:
    """The words of messages, to compare conversations by."""
    return "\n".join(_words(messages))


def said(conversation: Conversation) -> str:
    """The words of a conversation without its context, to compare it by."""
    return text_of(conversation.messages[conversation.head :])


def _words(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        yield f"{message.role}: {message.content}"
        for call in message.tool_calls:
            yield f"{call.name} {call.arguments}"


def role_of(name: str) -> Role | None:
    """The role with a name; None if there is no such role."""
    return cast(Role, name) if name in ROLES else None
