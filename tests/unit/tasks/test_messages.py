"""Conversations in the forms in which people have them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from instil.tasks.conversation import Conversation
from instil.tasks.messages import BadRowError, conversation_of

SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = {"role": "user", "content": "Hello?"}
SAID = {"role": "assistant", "content": "Hi!"}
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "function": {"name": "find", "arguments": '{"x": 1}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "found"}


def made(**fields: Any) -> Conversation:
    found = conversation_of(fields, "logs, row 1")
    assert found is not None
    return found


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(one.role, one.content) for one in conversation.messages]


THREE = [("system", "Be kind."), ("user", "Hello?"), ("assistant", "Hi!")]
FORMS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [SYSTEM, ASKED, SAID]},
    "json text": {"messages": json.dumps([SYSTEM, ASKED, SAID])},
    "parts": {
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hel"}, "lo?"]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Hi!"}]},
        ]
    },
    "sharegpt": {
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Hello?"},
            {"from": "gpt", "value": "Hi!"},
        ]
    },
    "sharegpt with a system field": {
        "system": "Be kind.",
        "conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi!"}],
    },
    "prompt of messages": {"prompt": [SYSTEM, ASKED], "completion": [SAID]},
    "request and response": {
        "request": {"model": "m", "messages": [SYSTEM, ASKED]},
        "response": {"choices": [{"message": SAID}]},
    },
    "batch file": {
        "request": {"body": {"messages": [SYSTEM, ASKED]}},
        "response": {"status_code": 200, "body": {"choices": [{"message": {"content": "Hi!"}}]}},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_the_same_conversation(form: str) -> None:
    assert said(made(**FORMS[form])) == THREE


def test_a_prompt_of_text_is_the_users_turn() -> None:
    assert said(made(prompt="Hello?", completion="Hi!")) == THREE[1:]


def test_a_single_turn_is_no_conversation() -> None:
    assert conversation_of({"input": "Hello?", "output": "Hi!"}, "row 1") is None
    assert conversation_of({"messages": None, "input": "Hello?"}, "row 1") is None


def test_tools_their_calls_and_results_are_kept() -> None:
    found = made(messages=[ASKED, CALL, RESULT, SAID], tools=TOOLS)
    assert json.loads(found.tools or "") == TOOLS
    call = found.messages[1].tool_calls[0]
    assert (call.name, json.loads(call.arguments), call.id) == ("find", {"x": 1}, "c1")
    assert found.messages[1].sent()["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert found.messages[2].sent() == RESULT
    assert found.answers("all", open_end=False) == [1, 3]
    old = made(messages=[ASKED, {"role": "assistant", "function_call": {"name": "find"}}])
    assert old.messages[1].tool_calls[0].arguments == "{}"


def test_an_answer_of_weight_0_is_not_learnt() -> None:
    found = made(messages=[ASKED, {**SAID, "weight": 0}, ASKED, {**SAID, "weight": 1}])
    assert found.answers("all", open_end=True) == [3]


def test_which_answers_are_learnt() -> None:
    found = made(messages=[SYSTEM, ASKED, SAID, ASKED, SAID, ASKED])
    assert found.answers("all", open_end=True) == [2, 4, 6]
    assert found.answers("all", open_end=False) == [2, 4]
    assert found.answers("first", open_end=True) == [2]
    assert found.answers("last", open_end=False) == [4]


def test_an_answer_before_any_question_is_not_learnt() -> None:
    assert made(messages=[SYSTEM, SAID, ASKED, SAID]).answers("all", open_end=False) == [3]


def test_thinking_is_kept_apart() -> None:
    found = made(messages=[ASKED, {**SAID, "reasoning_content": "A greeting."}])
    assert found.messages[1].thinking == "A greeting."


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no messages": ({"messages": []}, "empty", "there are no messages"),
    "not a list": ({"messages": "Hello?"}, "malformed", "'messages' is no list"),
    "not a message": ({"messages": ["Hello?"]}, "malformed", "message 1: this is no message"),
    "empty": ({"messages": [{"role": "user", "content": " "}]}, "empty", "message 1: the message"),
    "role": (
        {"messages": [{"role": "robot", "content": "x"}]},
        "unknown role",
        "got: str 'robot'; allowed: system, user, assistant, tool",
    ),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "image",
        "a part of the content is no text; got: str 'image_url'",
    ),
    "two users": ({"messages": [ASKED, ASKED, SAID]}, "two users in a row", "message 2: a user's"),
    "result alone": (
        {"messages": [ASKED, RESULT, SAID]},
        "tool result without its call",
        "message 2: no call of a tool before it",
    ),
    "result of another call": (
        {"messages": [ASKED, CALL, {**RESULT, "tool_call_id": "c2"}]},
        "tool result without its call",
        "got: tool_call_id 'c2'",
    ),
    "system alone": ({"messages": [SYSTEM]}, "no assistant turn", "only system messages"),
    "weight": ({"messages": [ASKED, {**SAID, "weight": 0.5}]}, "malformed", "the weight is wrong"),
    "number": ({"messages": [{"role": "user", "content": 3}]}, "malformed", "content is no list"),
    "failed request": (
        {"request": {"messages": [ASKED]}, "response": {"error": "timeout"}},
        "no assistant turn",
        "the response has no message",
    ),
    "call": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"id": "c"}]}]},
        "malformed",
        "this is no call of a tool",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_model_can_read_is_refused_with_its_reason(case: str) -> None:
    fields, reason, words = BAD[case]
    with pytest.raises(BadRowError) as caught:
        conversation_of(fields, "logs, row 1")
    assert caught.value.reason == reason
    assert "logs, row 1" in str(caught.value)
    assert words in str(caught.value)
