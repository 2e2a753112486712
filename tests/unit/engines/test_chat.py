"""Models that answer by text: in this process, and on a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.server import serving

from instil.engines import chat as module
from instil.engines.chat import LocalChat, ServerChat, chat_of
from instil.errors import ConfigError, ServerError


def test_a_local_model_answers(model_folders: dict[str, Path]) -> None:
    told: list[int] = []
    local = chat_of(str(model_folders["llama"]), None, "KEY", option="--judge")()
    assert isinstance(local, LocalChat)
    said = local.ask(["one", "two", "three"], told.append, max_tokens=4)
    assert len(said) == sum(told) == 3
    assert all(isinstance(text, str) for text in said)


def test_a_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret")
    with serving(lambda body: body["messages"][0]["content"].upper()) as server:
        server.failures = 1  # it is asked again
        chat, told = ServerChat(server.address, "large", key_env="SERVER_KEY"), list[int]()
        assert chat.ask(["a", "b"], told.append, max_tokens=9) == ["A", "B"]
        assert chat.name == f"large at {server.address}"
        path, key, body = server.seen[0]
    assert sum(told) == 2
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("large", 0, 9)
    assert len(server.seen) == 3


def test_what_a_model_refuses_is_left_out_or_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret")
    with serving(lambda body: "yes") as server:
        server.refuses = {"temperature", "max_tokens"}
        chat = ServerChat(server.address, "large", key_env="SERVER_KEY")
        assert chat.ask(["a", "b", "c"], lambda count: None, max_tokens=9) == ["yes"] * 3
        *_, (_, _, body) = server.seen
    assert "temperature" not in body
    assert "max_tokens" not in body
    assert body["max_completion_tokens"] == 9


def test_another_refusal_is_an_error() -> None:
    with serving(lambda body: "yes") as server:
        server.refuses = {"messages"}
        with pytest.raises(ServerError, match=r"Unsupported parameter: 'messages'"):
            ServerChat(server.address, "large").ask(["a"], lambda count: None, max_tokens=9)
        assert len(server.seen) == 1


def test_a_server_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRIES", 0)
    with serving(lambda body: "") as server:
        server.failures = 99
        chat = ServerChat(server.address, "large")
        with pytest.raises(ServerError, match=r"does not answer: large at .*RateLimit"):
            chat.ask(["a"], lambda count: None, max_tokens=9)


def test_an_address_names_its_scheme() -> None:
    with pytest.raises(ConfigError, match=r"127.0.0.1:9 is no address .* write http://127.0.0.1:9"):
        ServerChat("127.0.0.1:9", "large")


def test_a_server_needs_the_name_of_a_model() -> None:
    with pytest.raises(ConfigError, match=r"--by http://x: which model .* add --by-model NAME"):
        chat_of("http://x", None, "KEY", option="--by")
