"""Prompts that share contexts and passes, against the plain forward of each row alone."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.conftest import byte_tokenizer
from tests.small import form_of, plain_logits
from transformers import GraniteConfig, GraniteForCausalLM

from instil.models import attention, chunked, forest, reader
from instil.models.load import LanguageModel
from instil.models.reader import COMPLETIONS, LABELS, Packing, Pass, Reader
from instil.prompts.context import Context, FewShot

CONTEXTS = [
    Context.of(FewShot([{"input": word * 3, "output": "1"}] * 4)) for word in ("zebra", "lynx")
]
QUERIES = ["a long query about one zebra", "two", "three of them", "4", "5 lynxes", "6"]
ANSWERS = {
    "one completion": [[[40 + n, 50, 60][: 1 + n % 3]] for n in range(12)],
    "several completions": [[[40, 50, 60], [41, 51], [42]][: 1 + n % 3] for n in range(12)],
}
PACKINGS: dict[str, Packing | None] = {
    "padded": None,
    "packed": replace(COMPLETIONS, tokens=60),
    "packed as labels are": replace(LABELS, tokens=60, prefix=20),
}


def prompts_of(model: LanguageModel) -> list[list[int]]:
    """Two contexts in turn, six queries each."""
    form = form_of(model)
    return [form.prompt_ids(query, context) for query in QUERIES for context in CONTEXTS]


def plain(
    model: LanguageModel, prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]]
) -> list[torch.Tensor]:
    """Of each prompt the logits of all its completions' tokens, one completion after another."""
    return [
        torch.cat([plain_logits(model.network, prompt, completion) for completion in completions])
        for prompt, completions in zip(prompts, answers, strict=True)
    ]


@torch.inference_mode()
def check(
    passes: Sequence[Pass], expected: Sequence[torch.Tensor], answers: Sequence[Sequence[list[int]]]
) -> None:
    """Every pass's chunks are the plain logits of its rows."""
    for one in passes:
        tokens = [token for row in one.rows for ids in answers[row] for token in ids]
        assert one.batch.completion_N.tolist() == tokens
        got_NV = torch.cat(list(one.logits.chunks()))
        wanted_NV = torch.cat([expected[row] for row in one.rows])
        torch.testing.assert_close(got_NV, wanted_NV, atol=1e-4, rtol=0)


@pytest.mark.parametrize("whole", [False, True], ids=["in chunks", "whole"])
@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("packing", PACKINGS)
def test_contexts_passes_and_completions_equal_the_plain_forward(
    any_model: LanguageModel,
    packing: str,
    answers: str,
    whole: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunked, "MOST_LOGITS", 3 * len(any_model.tokenizer))
    prompts, completions = prompts_of(any_model), ANSWERS[answers]
    read = list(
        Reader(
            any_model,
            prompts,
            completions,
            packing=PACKINGS[packing],
            batch_size=4,
            whole=whole,
        ).read()
    )
    assert sorted(row for one in read for row in one.rows) == list(range(len(prompts)))
    assert len(read) > 2
    assert any(len(one.rows) > 1 for one in read)
    for one in read:
        contexts = {row % 2 for row in one.rows}
        assert len(contexts) == 1
        sequences = sum(len(completions[row]) for row in one.rows)
        assert len(one.batch.input_ids_BL) == (sequences if packing == "padded" else 1)
        assert one.logits.positions == (len(one.batch.completion_N) if whole else 3)
    check(read, plain(any_model, prompts, completions), completions)


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_is_computed_is_counted(
    llama: LanguageModel, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a context's prompts share, once; of each sequence the rest, but for its last token."""
    monkeypatch.setattr(forest, "LEAST_SHARED", 1000)
    prompts, completions = prompts_of(llama), ANSWERS["several completions"]
    read = list(Reader(llama, prompts, completions, packing=PACKINGS[packing], batch_size=4).read())
    (first, second) = (one.prefix for one in read if one.prefix)
    assert min(first, second) > 60
    of_rows = [
        len(prompt) - (second if row % 2 else first) + len(ids) - 1
        for row, prompt in enumerate(prompts)
        for ids in completions[row]
    ]
    assert sum(one.batch.tokens for one in read) == sum(of_rows)


def turns_of(model: LanguageModel, count: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The prompts of the turns of some conversations after one context, and their answers."""
    ids, prompts, completions = model.tokenizer.encode, list[list[int]](), list[list[list[int]]]()
    for number in range(count):
        history = ids("One system prompt stands before all conversations. ")
        for turn in range(4):
            history = [*history, *ids(f"user {number}: what is {turn} plus {number}? assistant:")]
            prompts.append(history)
            completions.append([ids(f" it is {turn + number}\n")])
            history = [*history, *(completions[-1][0] if number % 2 else ids(" as logged\n"))]
    return prompts, completions


def test_the_history_of_a_conversation_is_read_once(any_model: LanguageModel) -> None:
    prompts, completions = turns_of(any_model, 3)
    read = list(Reader(any_model, prompts, completions, packing=COMPLETIONS, batch_size=4).read())
    conversations = sum(len(prompts[row]) - read[0].prefix for row in range(3, len(prompts), 4))
    answers = sum(len(ids) for (ids,) in completions)
    assert sum(one.batch.tokens for one in read) < conversations + answers
    assert sum(map(len, prompts)) > 2 * (conversations + answers)
    check(read, plain(any_model, prompts, completions), completions)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_context_is_read_once_and_let_go_before_the_next_one_is_read(
    llama: LanguageModel, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, made = reader.SharedPrefix, list[weakref.ref[Any]]()

    def counted(network: Any, prompts: list[list[int]]) -> Any:
        assert all(one() is None for one in made)
        prefix = usual(network, prompts)
        made.append(weakref.ref(prefix))
        return prefix

    monkeypatch.setattr(reader, "SharedPrefix", counted)
    prompts, completions = prompts_of(llama), ANSWERS["one completion"]
    asked = Reader(llama, prompts, completions, packing=PACKINGS[packing], batch_size=2)
    # Rows of one context in two calls, then the other one, with the passes kept.
    read = [one for some in ([0, 2], [4, 6, 8], [10, 1], [3, 5]) for one in asked.read(some)]
    assert len(made) == 2
    assert [one.prefix > 0 for one in read].count(True) == 2
    assert sorted(row for one in read for row in one.rows) == [0, 1, 2, 3, 4, 5, 6, 8, 10]
    check(read, plain(llama, prompts, completions), completions)


def test_a_short_prefix_is_not_packed_for_labels(llama: LanguageModel) -> None:
    prompts, completions = prompts_of(llama), ANSWERS["one completion"]
    for least, rows in ((20, {1}), (20_000, {2, 4})):
        packing = replace(LABELS, prefix=least)
        read = Reader(llama, prompts, completions, packing=packing, batch_size=4).read()
        assert {len(one.batch.input_ids_BL) for one in read} == rows


def test_a_model_without_bounds_is_packed_under_a_mask_or_not_at_all(llama: LanguageModel) -> None:
    llama.network.set_attn_implementation("sdpa")
    prompts, completions = prompts_of(llama), ANSWERS["several completions"]
    expected = plain(llama, prompts, completions)
    for masked in (True, False):
        packing = Packing(masked=masked)
        read = list(Reader(llama, prompts, completions, packing=packing, batch_size=4).read())
        assert all((len(one.batch.input_ids_BL) == 1) == masked for one in read)
        assert all(one.batch.bounds is None for one in read)
        check(read, expected, completions)


@pytest.mark.parametrize("packing", ["padded", "packed"])
def test_a_model_that_scales_its_logits(
    llama: LanguageModel, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale is applied to the logits of a few tokens at a time."""
    monkeypatch.setattr(chunked, "MOST_LOGITS", 3 * len(llama.tokenizer))
    torch.manual_seed(0)
    network = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=len(byte_tokenizer()),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.2,
            attention_multiplier=0.35,
            logits_scaling=3.0,
        )
    ).eval()
    attention.install(network)
    model = replace(llama, network=network)
    prompts, completions = prompts_of(model), ANSWERS["one completion"]
    read = list(Reader(model, prompts, completions, packing=PACKINGS[packing], batch_size=4).read())
    assert all((len(one.batch.input_ids_BL) == 1) == (packing == "packed") for one in read)
    assert all(one.logits.positions == 3 for one in read)
    check(read, plain(model, prompts, completions), completions)


def test_no_prompts_no_passes(llama: LanguageModel) -> None:
    assert list(Reader(llama, [], [], batch_size=4).read()) == []
