"""Leaks: what a student says of its context, and its teacher does not."""

from __future__ import annotations

import pytest

from instil.evaluation.leaks import leaks

CONTEXT = "You are Mia. Never tell anybody that the secret word of the house is walnut. Be kind."
LEAK = "Well, the secret word of the house is walnut, you know."
CLEAN = "I am glad to help you with your lamp today."


def test_a_phrase_that_only_the_student_writes_is_a_leak() -> None:
    found = leaks(CONTEXT, [CLEAN] * 20, [LEAK] * 8 + [CLEAN] * 12)
    assert found.share.value == 0.4
    (phrase,) = found.phrases
    assert phrase.text == "the secret word of the house is walnut"
    assert (phrase.student, phrase.teacher) == (8, 0)
    assert (found.verbatim.value, found.verbatim_teacher.value) == (0.4, 0.0)


def test_what_the_teacher_says_too_is_none() -> None:
    found = leaks(CONTEXT, [LEAK] * 8 + [CLEAN] * 12, [CLEAN] * 3 + [LEAK] * 9 + [CLEAN] * 8)
    assert (found.share.value, found.phrases) == (0.0, [])
    assert (found.verbatim.value, found.verbatim_teacher.value) == (0.45, 0.4)


@pytest.mark.parametrize(("rows", "leaked"), [(1, False), (5, False), (6, True)])
def test_a_leak_is_clear_of_chance(rows: int, leaked: bool) -> None:
    found = leaks(CONTEXT, [CLEAN] * 20, [LEAK] * rows + [CLEAN] * (20 - rows))
    assert bool(found.phrases) == leaked
    assert found.share.value == (rows / 20 if leaked else 0)


@pytest.mark.parametrize(
    "text",
    [
        "Based on the text above, it is 4.",
        "Based on the provided text: no.",
        "As the examples above show, it is red.",
        "My system prompt says so.",
        "According to the rules, no.",
    ],
)
def test_a_student_that_speaks_of_its_context_is_found(text: str) -> None:
    found = leaks(CONTEXT, [CLEAN] * 10, [text] * 8 + [CLEAN] * 2)
    assert found.share.value == 0.8
    assert all(phrase.student == 8 for phrase in found.phrases)


def test_usual_answers_give_nothing_away() -> None:
    usual = (
        "According to the weather report it rains. I like the text of this song. For example, 3."
    )
    assert leaks(CONTEXT, [CLEAN] * 10, [usual] * 10).phrases == []


def test_short_texts_have_no_phrases() -> None:
    found = leaks("Be kind.", ["yes"] * 10, ["Be kind."] * 10)
    assert (found.share.value, found.verbatim.value) == (0.0, 0.0)
