"""Piles of conversations: what is used, what is left out, and what they begin with."""

from __future__ import annotations

from typing import Any

import pytest

from instil.errors import DataFileError, FieldError, OverlapError
from instil.tasks.conversation import Conversation
from instil.tasks.logs import (
    SMALL,
    Pile,
    Reading,
    Thinking,
    most_frequent,
    read_pile,
    rows_of,
    with_heads,
)
from instil.tasks.rows import Row, check_overlap, digest, group, key
from instil.tasks.split import split

SYSTEM = {"role": "system", "content": "Be kind."}


def turn(asked: str, said: str = "Yes.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


def pile(*rows: Any, **reading: Any) -> Pile:
    fields = [{"messages": row} if isinstance(row, list) else row for row in rows]
    records = ((f"logs, row {n}", row) for n, row in enumerate(fields, 1))
    return read_pile(records, "logs", Reading(**reading))


def test_a_conversation_is_a_row_for_each_answer() -> None:
    found = pile([SYSTEM, *turn("a?"), *turn("b?", "No.")], {"input": "c?"})
    rows = rows_of(found.items, Reading())
    assert [(row.input, row.output) for row in rows] == [
        ("a?", "Yes."),
        ("b?", "No."),
        ("c?", None),
    ]
    assert rows[0].conversation == rows[1].conversation
    assert rows[2].conversation is None
    assert group(rows[0]) == group(rows[1])
    assert key(rows[0]) != key(rows[1])
    assert len({digest([row]) for row in rows}) == 3


def test_few_bad_rows_are_an_error_and_of_many_rows_they_are_left_out() -> None:
    bad = [turn("x?")[0], *turn("y?")]
    with pytest.raises(FieldError, match=r"row 2, message 2: a user's.*also wrong: row 3"):
        pile(turn("a?"), bad, bad)
    found = pile(turn("a?"), bad, bad, on_bad_row="drop")
    assert [(one.where, one.reason) for one in found.dropped] == [
        ("logs, row 2", "two users in a row"),
        ("logs, row 3", "two users in a row"),
    ]
    assert len(found.items) == 1
    many = pile(*[turn(f"{n}?") for n in range(SMALL)], bad)
    assert len(many.items) == SMALL
    assert many.drops
    with pytest.raises(DataFileError, match="all 1 were left out; got: 1 two users in a row"):
        pile(bad, on_bad_row="drop")


def test_copies_are_used_once() -> None:
    words = " ".join(f"word{n}" for n in range(150))
    near = words.replace("word70", "other")
    found = pile(turn("a?"), turn("A? "), turn(words), turn(near), {"input": "a?"}, {"input": "a?"})
    assert [(one.where, one.reason, one.what) for one in found.dropped] == [
        ("logs, row 2", "duplicate", "a copy of logs, row 1"),
        ("logs, row 4", "near duplicate", "a near-copy of logs, row 3"),
    ]
    assert len(found.items) == 4  # rows of a single turn stay as they are


def test_conversations_with_one_long_prompt_are_no_copies_of_each_other() -> None:
    system = {"role": "system", "content": " ".join(f"rule{n}" for n in range(400))}
    found = pile(*[[system, *EXAMPLES, *turn(f"question {n}?")] for n in range(20)])
    assert found.dropped == []


def test_a_conversation_that_ends_with_the_user_is_a_query_or_cannot_be_learnt() -> None:
    rows = rows_of(pile([*turn("a?"), turn("b?")[0]]).items, Reading())
    assert [row.output for row in rows] == ["Yes.", None]
    gold = {"open_end": False}
    rows = rows_of(pile([*turn("a?"), turn("b?")[0]], **gold).items, Reading(open_end=False))
    assert [row.output for row in rows] == ["Yes."]
    with pytest.raises(FieldError, match="has no answer to learn; got: its last message is the us"):
        pile([turn("b?")[0]], **gold)


@pytest.mark.parametrize(("thinking", "thought"), [("learn", "Hm."), ("drop", None)])
@pytest.mark.parametrize("apart", [True, False])
def test_thinking_is_learnt_or_left_out(
    thinking: Thinking, thought: str | None, apart: bool
) -> None:
    asked, said = turn("a?", "Yes." if apart else "<think>\nHm.\n</think>\n\nYes.")
    said |= {"reasoning_content": "Hm."} if apart else {}
    (found,) = pile([asked, said], thinking=thinking).conversations
    assert (found.messages[1].thinking, found.messages[1].content) == (thought, "Yes.")
    with pytest.raises(FieldError, match="thinks before it answers"):
        pile([asked, said], thinking="forbid")


def test_other_names_of_fields() -> None:
    found = pile(
        {"question": "a?", "answer": "b"}, fields={"input": "question", "output": "answer"}
    )
    assert found.items == [Row("a?", "b")]
    with pytest.raises(
        FieldError, match=r"no field 'q', which --field input=q names; got: fields 'q"
    ):
        pile({"question": "a?"}, fields={"input": "q"})


def test_a_row_may_bring_its_own_context() -> None:
    found = pile({"input": "a?", "context": "A page."}, {"messages": turn("b?"), "context": "B."})
    assert [row.context for row in rows_of(found.items, Reading())] == ["A page.", "B."]


EXAMPLES = [*turn("example?", "so"), *turn("another?", "so, too")]


def headed(*conversations: list[dict[str, Any]]) -> list[Conversation]:
    return with_heads(pile(*conversations).conversations)


def test_the_head_is_the_system_message_and_the_turns_that_all_begin_with() -> None:
    found = headed(*[[SYSTEM, *EXAMPLES, *turn(f"{n}?")] for n in range(4)])
    assert {one.head for one in found} == {5}
    rows = rows_of(found, Reading())
    assert [row.input for row in rows] == ["0?", "1?", "2?", "3?"]
    assert [len(row.turn.before) for row in rows if row.turn] == [1] * 4
    head, count = most_frequent(one.messages[: one.head] for one in found)
    assert (len(head), count) == (5, 4)


def test_other_system_messages_with_the_same_examples_are_other_heads() -> None:
    other = {"role": "system", "content": "Be kind. Today is Monday."}
    found = headed(
        *[[SYSTEM, *EXAMPLES, *turn(f"{n}?")] for n in range(10)], [other, *EXAMPLES, *turn("x?")]
    )
    assert {one.head for one in found} == {5}
    assert len({one.messages[: one.head] for one in found}) == 2


def test_a_first_turn_that_only_some_have_is_no_example() -> None:
    found = headed(
        *[[SYSTEM, *turn("hello", "hi"), *turn(f"{n}?")] for n in range(8)],
        *[[SYSTEM, *turn(f"other {n}?")] for n in range(4)],
    )
    assert {one.head for one in found} == {1}


def test_the_only_turn_of_all_conversations_is_no_example() -> None:
    assert {one.head for one in headed(*[[SYSTEM, *turn("same?", f"{n}")] for n in range(5)])} == {
        1
    }


def test_conversations_are_held_out_whole() -> None:
    rows = rows_of(
        pile(*[[*turn(f"first {n}?"), *turn(f"then {n}?")] for n in range(20)]).items, Reading()
    )
    found = split(rows, None, [], seed=0)
    learnt, judged = ({row.conversation for row in of} for of in (found.inputs, found.sets[0].rows))
    assert len(judged) == 4
    assert not learnt & judged
    assert len(found.inputs) + len(found.sets[0].rows) == 40


def test_at_most_a_hundred_turns_are_held_out() -> None:
    whole = [[part for t in range(30) for part in turn(f"{n} {t}?")] for n in range(50)]
    found = split(rows_of(pile(*whole).items, Reading()), None, [], seed=0)
    assert len(found.sets[0].rows) == 90


def test_a_conversation_on_both_sides_is_found() -> None:
    rows = rows_of(pile([*turn("a?"), *turn("b?")], turn("c?")).items, Reading())
    with pytest.raises(OverlapError, match="1 of 1 evaluation rows are also"):
        check_overlap(rows[:1], {"training inputs": rows[1:]}, allow=False)
