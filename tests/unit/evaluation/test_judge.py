"""A judge of two answers: local, on a server, and what is made of its verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.server import serving

from instil.engines.chat import ServerChat
from instil.errors import ConfigError
from instil.evaluation.judge import Pair, judge_pairs, shipped_prompt, verdict
from instil.results.scores import JudgeScore


class Fixed:
    """A judge that follows a rule, and remembers what it was asked."""

    name = "fixed"

    def __init__(self, rule: Callable[[str, str], str]) -> None:
        self.rule = rule
        self.asked: list[str] = []

    def ask(
        self, prompts: Sequence[str], advance: Callable[[int], None], *, max_tokens: int
    ) -> list[str]:
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


def shorter(body: dict[str, Any]) -> str:
    a, b = _answers(body["messages"][0]["content"])
    return "A" if len(a) <= len(b) else "B"


def test_a_server_judges() -> None:
    with serving(shorter) as server:
        judge, told = ServerChat(server.address, "large"), list[int]()
        found = judge_pairs(
            judge, PAIRS, template=shipped_prompt(), context="Be brief.", advance=told.append
        )
        assert (found.wins, found.losses, found.unread) == (1, 1, 0)
        assert found.judge == f"large at {server.address}"
        assert sum(told) == len(server.seen) == 4
