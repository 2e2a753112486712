"""Texts that repeat themselves without an end."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from instil.models.generate import Decoding, Ending, Generated, generate
from instil.models.load import LanguageModel
from instil.models.repeats import EVERY, LEAST, LONGEST_PERIOD, TIMES, repeating


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([7] * LEAST, True),
        ([7] * (LEAST - 1), False),
        ([1, 2, 3] * 22, True),
        ([*range(17)] * TIMES, True),
        ([*range(17)] * (TIMES - 1), False),
        ([*range(LONGEST_PERIOD)] * TIMES, True),
        ([*range(LONGEST_PERIOD + 1)] * TIMES, False),
        ([*range(100)], False),
        ([5] * LEAST + [6], False),  # the end counts
        ([*range(50)] + [1, 2] * 32, True),
    ],
)
def test_a_text_repeats_itself(ids: list[int], found: bool) -> None:
    assert repeating(torch.tensor([ids])).tolist() == [found]
    assert Generated(ids, finished=False).repeats == found
    assert not Generated(ids, finished=True).repeats


def test_rows_are_told_apart() -> None:
    ids_BL = torch.stack([torch.arange(LEAST), torch.full((LEAST,), 3)])
    assert repeating(ids_BL).tolist() == [False, True]


def test_a_row_that_repeats_itself_is_cut_and_the_others_are_not_touched(
    llama: LanguageModel,
) -> None:
    # Without its blocks, a token follows from the one before it, so that the model repeats itself.
    network: Any = llama.network
    for layer in network.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    prompts, ending = [[number, number + 1] for number in range(5, 25)], Ending((), (), str)
    whole, cut = (
        generate(
            llama,
            prompts,
            ending,
            Decoding(max_new_tokens=300, stop_repeats=stops),
            advance=lambda rows, tokens: None,
        )
        for stops in (False, True)
    )
    assert [len(one.ids) for one in whole] == [300] * len(prompts)
    assert any(one.repeats for one in cut)
    for full, short in zip(whole, cut, strict=True):
        assert short.ids == full.ids[: len(short.ids)]
        assert not short.finished
        assert short.repeats == (len(short.ids) < 300 or full.repeats)
        assert len(short.ids) % EVERY == 0
