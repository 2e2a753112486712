from __future__ import annotations

import pytest

from instil.tasks import thinking


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("<|assistant|><think>\n", ("<think>", "</think>")),
        ("<|assistant|><think>", ("<think>", "</think>")),
        ("<|assistant|>\n<think>\n\n</think>\n\n", None),
        ("[THINK]", ("[THINK]", "[/THINK]")),
        ("<|assistant|>", None),
    ],
)
def test_a_block_is_open_until_it_is_closed(text: str, opened: tuple[str, str] | None) -> None:
    assert thinking.opened(text) == opened


@pytest.mark.parametrize(
    ("output", "spoken"),
    [
        ("three", "three"),
        ("<think>\nhm\n</think>\n\nthree", "three"),
        ("\n<think></think>    three", "    three"),
        ("<think>hm</think>\n\n    return 3", "    return 3"),
        ("the tag </think> closes", "the tag </think> closes"),
        ("<think>never closed", "<think>never closed"),
        ("<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>three", "three"),
    ],
)
def test_what_is_thought_is_no_part_of_an_output(output: str, spoken: str) -> None:
    assert thinking.spoken(output) == spoken


def test_inside_an_open_block_the_closing_mark_is_enough() -> None:
    assert thinking.closing_of("Easy.\n</think>\n\nthree", inside=True) == "</think>"
    assert thinking.closing_of("Easy.\n</think>\n\nthree") is None


@pytest.mark.parametrize(
    ("tail", "output", "written"),
    [
        ("<think>\n", "three", "\n</think>\n\nthree"),
        ("<think>", "three", "\n\n</think>\n\nthree"),
        ("<think>\n", "<think>\nhm\n</think>\n\nthree", "hm\n</think>\n\nthree"),
        ("<think>\n", "    x", "\n</think>\n\n    x"),
    ],
)
def test_an_open_block_is_closed_before_the_output(tail: str, output: str, written: str) -> None:
    assert thinking.after_opening(tail, output) == written
