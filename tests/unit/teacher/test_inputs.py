"""Inputs that the teacher writes: what it is shown, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from instil.models.generate import Decoding, Ending, Generated
from instil.models.load import LanguageModel
from instil.prompts.tokens import Tokens
from instil.tasks.rows import Row
from instil.teacher import inputs
from instil.teacher.inputs import Made, make_inputs

GIVEN = ["red", "green", "blue"]


class Author:
    """Writes texts from a list, in their order, and remembers what it was asked."""

    def __init__(self, tokens: Tokens, texts: Sequence[str], end: str = "\n") -> None:
        self.tokens, self.texts, self.end = tokens, [*texts], end
        self.asked: list[str] = []
        self.decodings: list[Decoding] = []

    def __call__(
        self, prompts: Sequence[list[int]], ending: Ending, decoding: Decoding
    ) -> list[Generated]:
        assert list(ending.stop) == [self.end]
        self.asked += [self.tokens.text(prompt) for prompt in prompts]
        self.decodings.append(decoding)
        written = []
        for _ in prompts:
            text = self.texts.pop(0) if self.texts else "red"
            ids = self.tokens.ids(self.tokens.marked(f" {text}{self.end}more"), special=False)
            written.append(Generated(ids, finished=True))
        return written


@pytest.fixture
def tokens(llama: LanguageModel) -> Tokens:
    return Tokens(llama.tokenizer)


@pytest.fixture
def make(tokens: Tokens) -> Callable[..., tuple[Made, Author]]:
    def made(texts: Sequence[str], count: int, **more: Any) -> tuple[Made, Author]:
        author = Author(tokens, texts, more.pop("end", "\n"))
        given = [Row(text) for text in more.pop("given", GIVEN)]
        fields: dict[str, Any] = {"others": [], "judged": [], "fits": lambda text: True, **more}
        return make_inputs(given, count, seed=0, tokens=tokens, write=author, **fields), author

    return made


Make = Callable[..., tuple[Made, Author]]


def test_a_prompt_is_a_list_of_given_inputs_that_is_not_finished(make: Make) -> None:
    made, author = make(["pink", "grey"], 2)
    assert [row.input for row in made.rows] == ["pink", "grey"]
    for prompt in author.asked:
        *shown, last = prompt.split("\n")
        assert sorted(line.removeprefix("Input: ") for line in shown)[-3:] == sorted(GIVEN)
        assert last == "Input:"
    assert author.decodings[0].temperature == 1.0


def test_each_prompt_shows_others_in_another_order(make: Make) -> None:
    given = [f"word {n}" for n in range(30)]
    _, author = make([f"new {n}" for n in range(10)], 10, given=given)
    assert len(set(author.asked)) == 10
    assert {prompt.count("Input: word") for prompt in author.asked} == {inputs.SHOTS}


def test_what_is_known_is_not_made_again(make: Make) -> None:
    texts = ["RED", "shot", "pink", "Pink ", "grey"]
    made, author = make(texts, 2, others=[Row("Shot", "1")])
    assert [row.input for row in made.rows] == ["pink", "grey"]
    assert (made.facts.repeated, made.facts.near, made.facts.unfit) == (3, 0, 0)
    assert len(author.asked) == 5  # two, then two for those left out, then one


def test_near_copies_of_evaluation_rows_are_refused(make: Make) -> None:
    judged = [Row("How do I reset my password?", "so"), Row("grey", "g")]
    texts = ["how do I reset my  password", "How can I reset my password?", "GREY", "What is it?"]
    made, _ = make(texts, 1, judged=judged)
    assert [row.input for row in made.rows] == ["What is it?"]
    assert made.facts.near == 3


def test_an_empty_a_cut_and_a_long_one_are_left_out(make: Make, tokens: Tokens) -> None:
    cut = Generated(tokens.ids(" never ends", special=False), finished=False)
    made, author = make(["", "a long one", "pink"], 1, fits=lambda text: "long" not in text)
    assert [row.input for row in made.rows] == ["pink"]
    assert made.facts.unfit == 2
    found = make_inputs(
        [Row("red")],
        1,
        others=[],
        judged=[],
        seed=0,
        tokens=tokens,
        write=lambda prompts, ending, decoding: [cut] * len(prompts),
        fits=lambda text: True,
    )
    assert (found.rows, found.facts.unfit) == ([], inputs.ROUNDS)
    assert len(author.asked) == 3


def test_a_teacher_that_repeats_itself_ends(make: Make) -> None:
    made, author = make([], 4)
    assert made.rows == []
    assert made.facts.repeated == len(author.asked) == 4 * inputs.ROUNDS
    assert len({decoding.seed for decoding in author.decodings}) == inputs.ROUNDS


def test_inputs_with_several_lines_are_set_apart_by_a_line(make: Make) -> None:
    given = ["one\ntwo", "three"]
    made, author = make(["four\nfive"], 1, given=given, end="\n\n---\n\n")
    assert [row.input for row in made.rows] == ["four\nfive"]
    assert "one\ntwo\n\n---\n\n" in author.asked[0]


def test_long_inputs_fill_a_prompt_up_to_a_limit(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MOST_TOKENS", 1)
    _, author = make(["pink"], 1)
    assert author.asked[0].count("Input: ") == 1
