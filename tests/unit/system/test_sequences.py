"""Sequences whose items are made when they are asked for."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import byte_tokenizer

from instil.prompts.context import Context
from instil.prompts.format import PlainPrompt
from instil.prompts.rendered import RenderedRows
from instil.prompts.windows import Windows
from instil.system.sequences import Computed, Kept, Lists, TokenLists, lengths
from instil.tasks.rows import Row


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.none() | st.integers(0, 2),
            st.lists(st.integers(0, 2) | st.integers(0, 2**31 - 1)),
        )
    )
)
def test_token_lists_come_back_as_they_were(
    lists: list[tuple[int, int | None, list[int]]],
) -> None:
    kept = TokenLists()
    for key, follows, ids in lists:
        kept.add(ids, key=key, follows=follows)
    assert list(kept) == [ids for _, _, ids in lists]
    assert len(kept) == len(lists)


@given(
    st.lists(st.lists(st.none() | st.lists(st.integers(0, 2), max_size=4), max_size=6), max_size=4)
)
def test_lists_in_one_memory_come_back_as_they_were(
    parts: list[list[list[int] | None]],
) -> None:
    """Of several parts, each with prompts and answers in one memory, one is made."""
    kept = Kept()
    prompts, answers = TokenLists(kept), Lists(kept)
    for part in parts:
        own = Kept()
        more, others = TokenLists(own), Lists(own)
        for number, ids in enumerate(part):
            more.add(ids or [], key=0, follows=number // 3)
            others.add(ids)
        start = kept.extend(own)
        prompts.extend(more, start)
        answers.extend(others, start)
    given = [ids for part in parts for ids in part]
    assert list(prompts) == [ids or [] for ids in given]
    assert list(answers) == given
    assert lengths(prompts) == lengths(answers) == lengths(given)


def test_what_an_answer_and_the_next_prompt_share_is_kept_once() -> None:
    kept = Kept()
    teacher, student, answers = TokenLists(kept), TokenLists(kept), Lists(kept)
    said, context = [7, 7], [1, 2, 3]
    for turn in range(5):
        answer = [turn, turn, 9]
        teacher.add([*context, *said], key="teacher", follows="talk")
        student.add(said, key="student", follows="talk")
        answers.add(answer)
        said = [*said, *answer, 8]
    assert len(kept._ids) == len(context) + len(said) - 1
    assert [len(ids) for ids in student] == [2, 6, 10, 14, 18]
    assert teacher[4] == [*context, *student[4]]


def test_a_computed_sequence_is_indexed_as_a_list() -> None:
    squares = Computed(5, lambda n: n * n)
    assert [squares[-1], *squares[1:3], *squares[::-2]] == [16, 1, 4, 16, 4, 0]
    assert list(Computed.picked(squares, [3, 3, 0])) == [9, 9, 0]
    with pytest.raises(IndexError):
        squares[5]


def test_a_row_does_not_keep_its_whole_prompt() -> None:
    """A context of 1,700 tokens, and 200 or 1,200 rows."""
    form = PlainPrompt(
        byte_tokenizer(), pattern="Q: {input}\nA:", completion=" {output}\n", separator="\n"
    )
    read = Context(instruction="word " * 340)

    def kept(count: int) -> int:
        rows = [Row(f"query {number}", "yes") for number in range(count)]
        tracemalloc.start()
        rendered = RenderedRows.of("row", rows, form, read, gold=False)
        pairs = rendered.pairs(
            [(number, [1, 2]) for number in range(count)], Windows(teacher=None, student=None)
        )
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(pairs[count - 1].teacher_prompt) > 1_700
        return taken

    assert (kept(1_200) - kept(200)) / 1_000 < 1_500  # bytes; a list of 1,700 numbers has 13,600
