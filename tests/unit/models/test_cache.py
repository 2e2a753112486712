"""A shared prefix that the rows of a batch read in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from instil.models import attention, cache, generate
from instil.models.attention import attend, beside
from instil.models.cache import SharedPrefix
from instil.models.generate import Decoding, Ending
from instil.models.load import LanguageModel


def prompts_of(model: LanguageModel) -> list[list[int]]:
    ids = model.tokenizer.encode
    shared = ids("A context that all of the prompts begin with, and that is read once. ")
    return [shared + ids(text) for text in ("one", "a longer query", "two", "and a third one")]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_completions_are_those_of_a_copy_for_each_row(
    any_model: LanguageModel, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes: list[SharedPrefix] = []

    class Seen(SharedPrefix):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            prefixes.append(self)

    monkeypatch.setattr(generate, "SharedPrefix", Seen)
    found = []
    for least in (1, 1000):
        monkeypatch.setattr(cache, "LONG_PREFIX", least)
        made = generate.generate(
            any_model,
            prompts_of(any_model),
            Ending((), (), any_model.tokenizer.decode),
            Decoding(8, temperature=temperature, seed=1),
            advance=lambda rows, tokens: None,
        )
        found.append([one.ids for one in made])
        assert prefixes[-1].in_place == (least == 1)
    assert found[0] == found[1]


def test_rows_that_read_in_place_leave_room_for_more_rows(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LONG_PREFIX", 1)
    monkeypatch.setattr(cache, "MOST_CACHED_TOKENS", 200)
    prefix = SharedPrefix(llama.network, prompts_of(llama))
    lengths = [prefix.length + 10] * 20
    copies = list(prefix.batches(lengths, batch_size=64))
    prefix.read_in_place(prompts_of(llama))
    assert prefix.in_place
    assert [len(batch) for batch in prefix.batches(lengths, batch_size=64)] == [20]
    assert max(map(len, copies)) == 200 // (prefix.length + 10)


def test_a_model_that_cannot_gets_copies(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LONG_PREFIX", 1)
    monkeypatch.setattr(cache, "beside", lambda keys, prefix: keys)  # the prefix is not read
    prefix = SharedPrefix(llama.network, prompts_of(llama))
    prefix.read_in_place(prompts_of(llama))
    assert not prefix.in_place
    copied = prefix.cache(2)
    assert copied is not None
    assert copied.layers[0].keys.shape[0] == 2


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("length", [1, 3])
def test_both_parts_are_put_together_as_one_attention(
    fused: bool, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr(attention, "_whole", plainly)
    query = torch.randn(5, 4, length, 8)
    key, value = torch.randn(5, 2, length + 2, 8), torch.randn(5, 2, length + 2, 8)
    prefix = (torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8))
    mask = torch.ones(5, 1, length, 7 + length + 2, dtype=torch.bool)
    mask[..., 7:] = torch.ones(length, length + 2, dtype=torch.bool).tril(2)
    mask[0, :, :, 7] = False  # padding
    whole = [
        torch.cat([one.expand(5, -1, -1, -1), own], 2).repeat_interleave(2, 1)
        for one, own in zip(prefix, (key, value), strict=True)
    ]
    expected = scaled_dot_product_attention(query, *whole, attn_mask=mask, scale=0.7)
    attended, _ = attend(torch.nn.Module(), query, beside(key, prefix), value, mask, scaling=0.7)
    torch.testing.assert_close(attended, expected.transpose(1, 2), atol=1e-5, rtol=1e-4)


def plainly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What another device than a processor computes."""
    scores = query @ key[0].transpose(1, 2) * scaling
    sums = scores.logsumexp(-1, keepdim=True)
    return (scores - sums).exp() @ value[0], sums


def test_values_of_another_size_are_read_in_place_too() -> None:
    query, key = torch.randn(1, 6, 8), torch.randn(1, 1, 5, 8)
    value = torch.randn(1, 1, 5, 4)
    attended, sums = attention._whole(query, key, value, 0.5)
    expected = scaled_dot_product_attention(query[None], key, value, scale=0.5)
    torch.testing.assert_close(attended, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sums, (query @ key[0].mT * 0.5).logsumexp(-1, keepdim=True))


def test_the_cache_is_as_long_as_all_that_is_read(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LONG_PREFIX", 1)
    prefix = SharedPrefix(llama.network, prompts_of(llama))
    prefix.read_in_place(prompts_of(llama))
    lent = prefix.cache(3)
    assert lent is not None
    assert lent.get_seq_length() == prefix.length
