"""Rows that are rendered in shares, also by copies of this process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.prompts.test_turns import TALK, TOOLS, TURNS, WITH_TOOLS, chat, rows

from instil.errors import ChatTemplateError
from instil.prompts.context import NO_CONTEXT, Context
from instil.prompts.rendered import RenderedRows
from instil.prompts.windows import Sieve, Windows
from instil.system import forks
from instil.tasks.rows import Row

REFUSING = "{% if messages[-1]['content'] == 'bad' %}{{ raise_exception('no') }}{% endif %}"
CONTEXT = Context(instruction="Answer <|im_end|> shortly.")


@pytest.fixture
def _copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "SHARE", 3)
    monkeypatch.setattr(forks, "ROUND", 2)
    monkeypatch.setattr(forks, "MANY", 4)
    monkeypatch.setattr(forks, "copies", lambda: 2)


def talks(count: int) -> list[Row]:
    made: list[Row] = []
    for number in range(count):
        query = {"role": "user", "content": f"Query {number} <|im_start|>"}
        made += rows([query, {"role": "assistant", "content": f"é {number}"}, *TALK])
    return [*made, *rows(TURNS, head=1, tools=TOOLS)]


def facts(made: RenderedRows) -> list[Any]:
    return [list(made.teacher_prompts), list(made.student_prompts), list(made.gold), made.rows]


@pytest.mark.usefixtures("_copies")
def test_shares_are_what_one_process_makes() -> None:
    form, given = chat(WITH_TOOLS), talks(7)
    made = RenderedRows.of("row", given, form, CONTEXT, gold=True)
    assert list(made.teacher_prompts) == [form.prompt_ids(row, CONTEXT) for row in given]
    assert list(made.student_prompts) == [form.prompt_ids(row) for row in given]
    assert list(made.gold) == [form.completion_ids(row) for row in given]
    assert made.rows[:-2] == given[:-2]
    assert made.rows[-2].output == '<tool_call>{"name": "find", "arguments": {"x": 1}}</tool_call>'


@pytest.mark.usefixtures("_copies")
def test_an_error_in_a_share_names_its_row() -> None:
    given = [*talks(3), Row("bad", "a")]
    with pytest.raises(ChatTemplateError, match=f"^row {len(given)}: the chat template does not"):
        RenderedRows.of("row", given, chat(REFUSING + WITH_TOOLS), CONTEXT, gold=False)


@pytest.mark.usefixtures("_copies")
def test_rows_that_cannot_be_read_are_left_out_of_their_shares() -> None:
    given = [row for number in range(9) for row in (Row(f"{number}?", "a"), Row("bad", "b"))]
    sieve = Sieve(Windows(None, None), 1, [])
    form = chat(REFUSING + WITH_TOOLS)
    made = RenderedRows.of("row", given, form, CONTEXT, gold=True, sieve=sieve)
    assert [row.input for row in made.rows] == [f"{number}?" for number in range(9)]
    assert list(made.student_prompts) == [form.prompt_ids(row) for row in made.rows]
    assert [one.where for one in sieve.dropped] == [f"row {n}" for n in range(2, 19, 2)]


@pytest.mark.parametrize("copied", [False, True])
def test_all_is_rendered_anew_if_pieces_have_other_ids(
    copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if copied:
        for name, value in (("SHARE", 3), ("ROUND", 2), ("MANY", 4)):
            monkeypatch.setattr(forks, name, value)
        monkeypatch.setattr(forks, "copies", lambda: 2)
    form, given = chat(WITH_TOOLS), talks(7)
    expected = [form.prompt_ids(row) for row in given]
    pieces = form.tokens.pieces
    joined = pieces._joined

    def wrong(text: str) -> list[int]:
        return [*joined(text), *([0] if "Query 4" in text else [])]

    monkeypatch.setattr(pieces, "_joined", wrong)
    monkeypatch.setattr("instil.prompts.pieces.EVERY", 2)
    made = RenderedRows.of("row", given, form, NO_CONTEXT, gold=True)
    assert not pieces.used
    assert list(made.student_prompts) == expected


def test_a_form_keeps_only_the_prompts_of_the_last_row() -> None:
    form, (one, two, *_) = chat(), talks(1)
    for row in (one, two, one):
        assert form.prompt_ids(row, CONTEXT) != form.prompt_ids(row)
        assert [known.context for known in form._last[1]] == [CONTEXT, NO_CONTEXT]
    other = replace(one, context="more")
    assert form.prompt_ids(other) == form.prompt_ids(one)
