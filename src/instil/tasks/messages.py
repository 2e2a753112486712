"""Makes conversations of records, in the forms in which chat APIs and data sets write them.

Known forms: `messages`, with `tools` beside it; `conversations` with `from` and `value` (ShareGPT);
`prompt` and `completion`, as text or as messages; `request` and `response`, as a proxy before a chat
API logs them. Content may be text or a list of parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from instil.errors import FieldError
from instil.tasks.conversation import ROLES, Conversation, Message, Role, ToolCall, role_of
from instil.tasks.logprobs import logprobs_of
from instil.tasks.records import Fields, is_missing, shown
from instil.tasks.text_files import check_characters

Reason = Literal[
    "malformed",
    "empty",
    "unknown role",
    "image",
    "two users in a row",
    "tool result without its call",
    "no assistant turn",
    "ends with the user",
    "no context",
    "thinks",
    "too long",
    "template refuses",
    "duplicate",
    "near duplicate",
]
"""Why a row cannot be used."""

_OTHER_NAMES: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Names of roles in some forms -> the role."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class BadRowError(FieldError):
    """A row that cannot be used.

    Args:
        reason: Why, in one or a few words.
        what: What is wrong, and where.
        more: What was got and allowed, and the mend.
    """

    def __init__(self, reason: Reason, what: str, **more: str) -> None:
        self.reason = reason
        super().__init__(what, **more)


def conversation_of(fields: Fields, where: str, *, whole: bool = True) -> Conversation | None:
    """Makes a conversation of a record; None if the record is a single turn with an `input`.

    Args:
        fields: The record.
        where: Its place, for error messages.
        whole: Whether it must have a user's message, and so on, as a conversation has.

    Raises:
        BadRowError: the record is no conversation that a model can read.
        DataFormatError: a text contains half a character.
    """
    for names, form in _FORMS.items():
        if all(name in fields and not is_missing(fields[name]) for name in names):
            messages, tools = form(fields, where)
            break
    else:
        return None
    made = [_message(value, f"{where}, message {n}") for n, value in enumerate(messages, 1)]
    if whole:
        _check(made, where)
    context = fields.get("context")
    return Conversation(
        tuple(made),
        None
        if is_missing(tools) or not tools
        else _json_text(tools, f"{where}: the field 'tools'"),
        None if is_missing(context) else _text(context, f"{where}: the field 'context'"),
        where,
    )


def _messages(fields: Fields, where: str) -> tuple[list[Any], object]:
    return _list(fields["messages"], f"{where}: the field 'messages'"), fields.get("tools")


def _share_gpt(fields: Fields, where: str) -> tuple[list[Any], object]:
    messages: list[Any] = []
    if not is_missing(system := fields.get("system")) and system != "":
        messages.append({"role": "system", "content": system})
    for one in _list(fields["conversations"], f"{where}: the field 'conversations'"):
        if not isinstance(one, Mapping) or "from" not in one:
            messages.append(one)
        elif one["from"] == "function_call":
            calls = _loaded(one.get("value"))
            messages.append(
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": calls if isinstance(calls, list) else [calls],
                }
            )
        else:
            content = {"content": one.get("value")}
            messages.append({"role": one["from"], **content, "weight": one.get("weight")})
    return messages, fields.get("tools")


def _prompt(fields: Fields, where: str) -> tuple[list[Any], object]:
    prompt, completion = _loaded(fields["prompt"]), _loaded(fields["completion"])
    before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if not isinstance(completion, list):
        completion = [{"role": "assistant", "content": completion}]
    return [*before, *completion], fields.get("tools")


def _exchange(fields: Fields, where: str) -> tuple[list[Any], object]:
    request, response = (
        _object(fields[name], f"{where}: the field {name!r}") for name in ("request", "response")
    )
    request, response = (
        _object(one["body"], f"{where}: the body") if "body" in one else one
        for one in (request, response)
    )
    choices = response.get("choices") or [{}]
    first = choices[0] if isinstance(choices, list) else {}
    answer = first.get("message")
    messages = _list(request.get("messages"), f"{where}: the messages of the request")
    if not isinstance(answer, Mapping):
        raise BadRowError(
            "no assistant turn",
            f"{where}: the response has no message",
            got=shown(response),
            allowed="choices[0].message",
            mend="leave out requests that failed",
        )
    said = {"role": "assistant", "logprobs": first.get("logprobs"), **answer}
    return [*messages, said], request.get("tools")


_FORMS: dict[tuple[str, ...], Callable[[Fields, str], tuple[list[Any], object]]] = {
    ("messages",): _messages,
    ("conversations",): _share_gpt,
    ("request", "response"): _exchange,
    ("prompt", "completion"): _prompt,
}
"""Fields that a form has -> what reads it."""


def _message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRowError(
            "malformed", f"{where}: this is no message", got=shown(value),
            allowed="an object with role and content",
        )  # fmt: skip
    named = value.get("role")
    role = role_of(_OTHER_NAMES.get(str(named), str(named)))
    if role is None:
        raise BadRowError(
            "unknown role", f"{where}: the role is unknown", got=shown(named),
            allowed=", ".join(ROLES), mend="rename the role, or remove the message",
        )  # fmt: skip
    calls = value.get("tool_calls") or []
    if value.get("function_call"):
        calls = [{"function": value["function_call"]}]
    made = tuple(_call(call, where) for call in _list(calls, f"{where}: the tool calls"))
    content = value.get("content")
    text = "" if is_missing(content) else _content(content, where)
    if not text.strip() and not made and role != "tool":
        raise BadRowError("empty", f"{where}: the message is empty", mend="delete the row")
    weight = value.get("weight")
    if weight not in (None, 0, 1):
        raise BadRowError(
            "malformed", f"{where}: the weight is wrong", got=shown(weight),
            allowed="0 (the answer is not learnt) or 1",
        )  # fmt: skip
    thoughts = [value[name] for name in _THOUGHTS if not is_missing(value.get(name))]
    name, call = value.get("name"), value.get("tool_call_id")
    return Message(
        role,
        text,
        _text(thoughts[0], where) if thoughts and role == "assistant" else None,
        made,
        str(name) if name and role == "tool" else None,
        str(call) if call and role == "tool" else None,
        weight != 0,
        logprobs_of(value.get("logprobs")) if role == "assistant" else None,
    )


def _content(value: object, where: str) -> str:
    value = value if isinstance(value, str) else _loaded(value)
    if isinstance(value, str):
        return _text(value, f"{where}: the content")
    texts = []
    for part in _list(value, f"{where}: the content"):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in _TEXT_PARTS or (kind is None and isinstance(part, Mapping) and "text" in part):
            texts.append(_text(part.get("text"), f"{where}: a part of the content"))
        else:
            raise BadRowError(
                "image", f"{where}: a part of the content is no text", got=shown(kind or part),
                allowed="text", mend="remove the part, or delete the row",
            )  # fmt: skip
    return _text("".join(texts), f"{where}: the content")


def _call(value: object, where: str) -> ToolCall:
    made = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(made, Mapping) or not isinstance(made.get("name"), str):
        raise BadRowError(
            "malformed", f"{where}: this is no call of a tool", got=shown(value),
            allowed='{"function": {"name": …, "arguments": …}}',
        )  # fmt: skip
    known = value.get("id") if isinstance(value, Mapping) else None
    arguments = made.get("arguments", {})
    return ToolCall(
        made["name"],
        _json_text({} if is_missing(arguments) else arguments, f"{where}: the arguments"),
        str(known) if known else None,
    )


def _check(messages: Sequence[Message], where: str) -> None:
    """Refuses an order of messages that no conversation has."""
    if not messages:
        raise BadRowError("empty", f"{where}: there are no messages", mend="delete the row")
    asked: Message | None = None
    for number, message in enumerate(messages, 1):
        before = messages[number - 2] if number > 1 else None
        place = f"{where}, message {number}"
        if message.role == "user" and before is not None and before.role == "user":
            raise BadRowError(
                "two users in a row",
                f"{place}: a user's message comes right after another one",
                mend="join the two messages, or delete the row",
            )
        if message.role == "tool":
            known = {call.id for call in asked.tool_calls} if asked else set()
            if asked is None or (message.call and known != {None} and message.call not in known):
                raise BadRowError(
                    "tool result without its call",
                    f"{place}: no call of a tool before it belongs to this result",
                    got=f"tool_call_id {message.call!r}" if message.call else "",
                    mend="add the assistant's message with tool_calls, or delete the row",
                )
        else:
            asked = message if message.tool_calls else None
    if all(message.role == "system" for message in messages):
        raise BadRowError(
            "no assistant turn",
            f"{where}: there are only system messages",
            mend="delete the row",
        )


def _list(value: object, what: str) -> list[Any]:
    value = _loaded(value)
    if not isinstance(value, list | tuple):
        raise BadRowError("malformed", f"{what} is no list", got=shown(value), allowed="a list")
    return list(value)


def _object(value: object, what: str) -> Mapping[str, Any]:
    value = _loaded(value)
    if not isinstance(value, Mapping):
        raise BadRowError("malformed", f"{what} is no object", got=shown(value))
    return value


def _loaded(value: object) -> object:
    """A value; one that a table holds as JSON text is read."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    if hasattr(value, "tolist"):  # an array of a data frame
        return value.tolist()
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise BadRowError("malformed", f"{what} is not text", got=shown(value), allowed="a string")
    check_characters(value, what)
    return value


def _json_text(value: object, what: str) -> str:
    """A value as JSON text; text that is JSON already is written in the same way."""
    try:
        return json.dumps(_loaded(value), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise BadRowError(
            "malformed", f"{what} cannot be written as JSON", got=str(error)
        ) from None
