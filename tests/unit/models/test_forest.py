"""Sequences merged where they begin alike."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from instil.models.forest import LEAST_SHARED, Forest, merged

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
BLOCKS = {0: [7] * LEAST_SHARED, 1: [8] * LEAST_SHARED, 2: [7] * LEAST_SHARED + [9]}


def long(numbers: list[int]) -> list[int]:
    """A sequence of blocks, each long enough to be shared."""
    return [token for number in numbers for token in BLOCKS[number]]


def read(forest: Forest) -> list[tuple[list[int], list[int]]]:
    """For each predicting place, in order: the tokens that are read there, and their depths."""
    ids, depths, parents = forest.ids.tolist(), forest.depths.tolist(), forest.parents
    ends = [one.offset + len(one.ids) for one in forest.segments]
    found = []
    for place in forest.predicting().tolist():
        number = next(n for n, end in enumerate(ends) if place < end)
        tokens, at = [], place
        while number >= 0:
            start = forest.segments[number].offset
            tokens = [*range(start, at + 1), *tokens]
            number = parents[number]
            at = ends[number] - 1
        found.append(([ids[t] for t in tokens], [depths[t] for t in tokens]))
    return found


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=8))
def test_each_token_is_predicted_after_all_tokens_before_it(
    drawn: list[tuple[list[int], list[int]]],
) -> None:
    sequences = [(long(prompt), long(completion)) for prompt, completion in drawn]
    forest = merged(sequences)
    expected = [
        [*prompt, *completion[:end]]
        for prompt, completion in sequences
        for end in range(len(completion))
    ]
    found = read(forest)
    assert [tokens for tokens, _ in found] == expected
    assert all(depths == list(range(len(depths))) for _, depths in found)
    assert len(set(forest.predicting().tolist())) == len(expected)
    assert forest.tokens <= sum(len(p) + len(c) - 1 for p, c in sequences)


def test_a_conversation_of_gold_answers_is_one_sequence() -> None:
    history: list[int] = []
    turns = []
    for turn in range(8):
        prompt = [*history, *[10 + turn] * 5]
        answer = [30 + turn] * 4
        turns.append((prompt, answer))
        history = prompt + answer
    forest = merged(turns)
    assert len(forest.segments) == 1
    assert forest.tokens == len(history) - 1


def test_other_answers_branch_off_one_history() -> None:
    history: list[int] = []
    turns = []
    for turn in range(4):
        prompt = [*history, *[10 + turn] * LEAST_SHARED]
        turns.append((prompt, [50 + turn] * 4))
        history = [*prompt, *[30 + turn] * 4]
    forest = merged(turns)
    asked = len(turns[-1][0])
    assert forest.tokens == asked + 4 * 3
    assert [one.start for one in forest.segments if one.parent is None] == [0]


def test_equal_sequences_share_all_but_where_they_predict() -> None:
    prompt, answer = [*range(20)], [40, 41, 42]
    forest = merged([(prompt, answer), (prompt, answer)])
    assert forest.tokens == 19 + 2 * 3
    assert len(set(forest.predicting().tolist())) == 6


def test_a_short_beginning_is_not_shared() -> None:
    assert merged([([1, 2, 3], [4]), ([1, 2, 5], [6])]).tokens == 6


def test_what_comes_before_is_left_out() -> None:
    forest = merged([([1, 2, 3], [4, 5])], prefix=2)
    assert forest.ids.tolist() == [3, 4]
    assert forest.predicting().tolist() == [0, 1]
