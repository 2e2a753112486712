from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instil.errors import AlignmentError
from instil.models.batch import collate, shared_prefix
from instil.prompts.pair import AlignedPair

ids = st.lists(st.integers(3, 99), min_size=1, max_size=12)
rows = st.lists(st.tuples(ids, ids), min_size=1, max_size=6)


@given(rows)
def test_each_completion_token_is_predicted_from_the_position_before_it(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    prompts, completions = [p for p, _ in pairs], [c for _, c in pairs]
    batch = collate(prompts, completions, pad_id=0)
    expected = []
    for b, (prompt, completion) in enumerate(pairs):
        whole = prompt + completion
        for position in range(len(prompt) - 1, len(whole) - 1):
            assert batch.predicts_BL[b, position]
            assert batch.input_ids_BL[b, position] == whole[position]
            expected.append(whole[position + 1])
    assert batch.completion_N.tolist() == expected
    assert int(batch.predicts_BL.sum()) == len(expected)
    assert batch.tokens == sum(len(p) + len(c) - 1 for p, c in pairs)
    assert batch.attention_mask.sum() == batch.tokens
    assert not (batch.predicts_BL & (batch.attention_mask == 0)).any()


@given(rows, ids)
def test_leaving_out_a_shared_prefix_keeps_positions_and_targets(
    pairs: list[tuple[list[int], list[int]]], prefix: list[int]
) -> None:
    prompts = [prefix + p for p, _ in pairs]
    completions = [c for _, c in pairs]
    whole = collate(prompts, completions, pad_id=0)
    rest = collate(prompts, completions, pad_id=0, prefix=len(prefix))
    assert torch.equal(rest.completion_N, whole.completion_N)
    assert torch.equal(rest.attention_mask, whole.attention_mask)
    assert torch.equal(rest.position_ids_BL, whole.position_ids_BL[:, len(prefix) :])
    assert torch.equal(rest.predicts_BL, whole.predicts_BL[:, len(prefix) :])


@given(st.lists(ids, min_size=1, max_size=5), st.lists(st.integers(3, 99), max_size=5))
def test_the_shared_prefix_is_the_longest_that_leaves_every_row_a_token(
    rests: list[list[int]], prefix: list[int]
) -> None:
    prompts = [prefix + rest for rest in rests]
    shared = shared_prefix(prompts)
    assert shared >= min(len(prefix), min(map(len, prompts)) - 1)
    assert all(len(prompt) > shared for prompt in prompts)
    assert len({tuple(prompt[:shared]) for prompt in prompts}) == 1
    one_more = {tuple(prompt[: shared + 1]) for prompt in prompts}
    assert len(one_more) > 1 or any(len(prompt) == shared + 1 for prompt in prompts)


def test_a_pair_that_does_not_fit_is_refused_with_its_numbers() -> None:
    pair = AlignedPair(17, [5] * 90, [5] * 10, [6] * 20)
    pair.check(teacher_window=110, student_window=30)
    with pytest.raises(AlignmentError, match=r"row 17: the teacher prompt has 90 .* by 10 tokens"):
        pair.check(teacher_window=100, student_window=None)
    with pytest.raises(
        AlignmentError, match=r"row 17: the student prompt has 10 .*shorten the input"
    ):
        pair.check(teacher_window=None, student_window=25)
    with pytest.raises(AlignmentError, match="completion has no tokens"):
        AlignedPair(17, [5], [5], []).check(teacher_window=None, student_window=None)
    with pytest.raises(AlignmentError, match="student prompt has no tokens"):
        AlignedPair(17, [5], [], [5]).check(teacher_window=None, student_window=None)
