"""A judge of two answers: local, on a server, and what is made of its verdicts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from instil.errors import ConfigError, ServerError
from instil.evaluation import judge as module
from instil.evaluation.judge import (
    LocalJudge,
    Pair,
    ServerJudge,
    judge_pairs,
    shipped_prompt,
    verdict,
)
from instil.results.scores import JudgeScore


class Fixed:
    """A judge that follows a rule, and remembers what it was asked."""

    name = "fixed"

    def __init__(self, rule: Callable[[str, str], str]) -> None:
        self.rule = rule
        self.asked: list[str] = []

    def ask(self, prompts: Sequence[str], advance: Callable[[int], None]) -> list[str]:
        self.asked += prompts
        advance(len(prompts))
        return [self.rule(*_answers(prompt)) for prompt in prompts]


def _answers(prompt: str) -> tuple[str, str]:
    first, second = prompt.split("<answer>\n")[1:]
    return first.split("\n</answer>")[0], second.split("\n</answer>")[0]


def judged(rule: Callable[[str, str], str], pairs: Sequence[Pair]) -> JudgeScore:
    return judge_pairs(
        Fixed(rule), pairs, template=shipped_prompt(), context="Be brief.", advance=lambda _: None
    )


PAIRS = [Pair("hello", "a long answer", "short"), Pair("bye", "tiny", "a much longer one")]


def test_the_better_answer_wins_in_both_orders() -> None:
    found = judged(lambda a, b: "A" if len(a) < len(b) else "B", PAIRS)
    assert (found.wins, found.losses, found.win_rate.value) == (1, 1, 0.5)
    assert found.same_in_both_orders is not None
    assert found.same_in_both_orders.value == 1.0


def test_a_judge_that_prefers_a_place_ties() -> None:
    found = judged(lambda a, b: "A", PAIRS)
    assert (found.wins, found.losses, found.win_rate.value) == (0, 0, 0.5)
    assert found.same_in_both_orders is not None
    assert found.same_in_both_orders.value == 0.0


def test_ties_and_unread_verdicts_count_half() -> None:
    found = judged(lambda a, b: "tie" if "short" in (a, b) else "I cannot say.", PAIRS)
    assert (found.wins, found.losses, found.unread, found.win_rate.value) == (0, 0, 2, 0.5)


def test_equal_answers_are_not_asked() -> None:
    fixed = Fixed(lambda a, b: "A")
    found = judge_pairs(
        fixed,
        [Pair("q", "same", "same ")] * 3,
        template=shipped_prompt(),
        context=None,
        advance=lambda _: None,
    )
    assert (fixed.asked, found.equal, found.rows, found.win_rate.value) == ([], 3, 3, 0.5)
    assert found.same_in_both_orders is None


def test_the_judge_sees_context_question_and_answers() -> None:
    fixed = Fixed(lambda a, b: "A")
    judge_pairs(
        fixed, PAIRS[:1], template=shipped_prompt(), context="Be brief.", advance=lambda _: None
    )
    one, other = fixed.asked
    assert _answers(one) == ("short", "a long answer")
    assert _answers(other) == ("a long answer", "short")
    assert "Be brief." in one
    assert "hello" in one
    judge_pairs(fixed, PAIRS[:1], template=shipped_prompt(), context=None, advance=lambda _: None)
    assert "instructions" not in fixed.asked[-1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A", "A"),
        ("Answer B.", "B"),
        ("Both are good, but I choose A", "A"),
        ("Tie", "tie"),
        ("**B**", "B"),
        ("neither", None),
        ("", None),
    ],
)
def test_a_verdict_is_read(text: str, said: str | None) -> None:
    assert verdict(text) == said


def test_a_wrong_template_is_refused() -> None:
    for template in ("{{ nothing }}", "{% if %}"):
        with pytest.raises(ConfigError, match="the judge's prompt cannot be rendered"):
            judge_pairs(
                Fixed(lambda a, b: "A"),
                PAIRS,
                template=template,
                context=None,
                advance=lambda _: None,
            )


def test_a_local_model_judges(model_folders: dict[str, Path]) -> None:
    told: list[int] = []
    local = LocalJudge(str(model_folders["llama"]))
    said = local.ask(["one", "two", "three"], told.append)
    assert len(said) == sum(told) == 3
    assert all(isinstance(text, str) for text in said)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.seen.append((self.path, self.headers["Authorization"], body))
        if server.failures > 0:
            server.failures -= 1
            self.send_response(429)
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            return
        shorter = min(_answers(body["messages"][0]["content"]), key=len)
        first = _answers(body["messages"][0]["content"])[0] == shorter
        made = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "A" if first else "B"},
                }
            ],
        }
        text = json.dumps(made).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    made.seen, made.failures = [], 0
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def address(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"


def test_a_server_judges(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    server.failures = 1  # it is asked again
    judge, told = ServerJudge(address(server), "large", key_env="JUDGE_KEY"), list[int]()
    found = judge_pairs(
        judge, PAIRS, template=shipped_prompt(), context="Be brief.", advance=told.append
    )
    assert (found.wins, found.losses, found.unread) == (1, 1, 0)
    assert found.judge == f"large at {address(server)}"
    assert sum(told) == 4
    path, key, body = server.seen[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"]) == ("large", 0)
    assert len(server.seen) == 5


def test_a_server_that_does_not_answer_is_an_error(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRIES", 0)
    server.failures = 99
    judge = ServerJudge(address(server), "large")
    with pytest.raises(ServerError, match=r"the judge does not answer: large at .*RateLimit"):
        judge_pairs(judge, PAIRS, template=shipped_prompt(), context=None, advance=lambda _: None)
