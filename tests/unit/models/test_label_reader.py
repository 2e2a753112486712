"""Labels after prompts that share contexts, in all ways to read them, against plain forwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.conftest import byte_tokenizer
from tests.small import form_of, nothing, plain_logits
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    set_seed,
)

from instil.models import attention, chunked, label_reader
from instil.models.branches import Branches
from instil.models.label_reader import LABELS, read_labels
from instil.models.load import LanguageModel
from instil.models.reshape import put_head
from instil.prompts.context import Context, FewShot
from instil.system import processes

CONTEXTS = [
    Context.of(FewShot([{"input": word * 3, "output": "1"}] * 4)) for word in ("zebra", "lynx")
]
QUERIES = ["a long query about one zebra", "two", "three of them", "4", "5 lynxes", "6"]
TREE = Branches.of({(40, 50), (40, 51, 52), (41,), (42, 50)})
BELOW = len(TREE.nodes) - 1  # tokens of all branches
CHAIN = Branches.of({(40, 50), (40,)})


def prompts_of(model: LanguageModel) -> list[list[int]]:
    """Two contexts in turn, six queries each."""
    form = form_of(model)
    return [form.prompt_ids(query, context) for query in QUERIES for context in CONTEXTS]


def expected(
    model: LanguageModel, prompts: list[list[int]], branches: Branches = TREE
) -> torch.Tensor:
    """The logits at all nodes, shape (R, P, V): a forward pass for each of them."""
    return torch.stack(
        [
            torch.cat([plain_logits(model.network, [*prompt, *n], [0]) for n in branches.nodes])
            for prompt in prompts
        ]
    )


def keep(positions: int) -> Callable[[Iterator[torch.Tensor]], dict[str, torch.Tensor]]:
    """Keeps the logits, one line per row."""
    return lambda chunks: {"logits_RPV": torch.cat([*chunks]).unflatten(0, (-1, positions))}


def read(
    model: LanguageModel, branches: Branches = TREE, prompts: list[list[int]] | None = None
) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """The logits at all nodes, and what the progress was told."""
    told: list[tuple[int, int]] = []
    got = read_labels(
        model,
        prompts or prompts_of(model),
        branches,
        batch_size=4,
        advance=lambda rows, tokens: told.append((rows, tokens)),
        make=keep(len(branches.nodes)),
    )
    return got["logits_RPV"], told


@pytest.fixture(params=["branches", "packed paths", "padded paths"])
def labels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways to read labels, a few rows in a pass."""
    packed = request.param == "packed paths"
    packing = replace(LABELS, tokens=60, prefix=20) if packed else None
    monkeypatch.setattr(label_reader, "LABELS", packing)
    if request.param != "branches":
        monkeypatch.setattr(label_reader, "reach", lambda network: 0)
    return str(request.param)


@pytest.mark.usefixtures("labels")
@pytest.mark.parametrize("branches", [TREE, CHAIN], ids=["tree", "chain"])
def test_labels_come_back_in_the_order_of_the_prompts(
    any_model: LanguageModel, branches: Branches
) -> None:
    got, told = read(any_model, branches)
    prompts = prompts_of(any_model)
    torch.testing.assert_close(got, expected(any_model, prompts, branches), atol=1e-4, rtol=0)
    assert sum(rows for rows, _ in told) == len(prompts)
    assert len(told) > 2


def test_a_prompt_is_read_once_whatever_the_number_of_its_labels(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(llama)[::2]
    shared = next(n for n in range(999) if len({tuple(p[: n + 1]) for p in prompts}) > 1)
    own = sum(len(prompt) - shared for prompt in prompts)
    _, told = read(llama, prompts=prompts)
    assert sum(tokens for _, tokens in told) == shared + own + len(prompts) * BELOW
    monkeypatch.setattr(label_reader, "reach", lambda network: 0)
    _, told = read(llama, prompts=prompts)
    assert sum(tokens for _, tokens in told) == shared + 4 * own + len(prompts) * (2 + 3 + 1 + 2)


def test_one_prompt_alone(any_model: LanguageModel) -> None:
    (prompt, *_) = prompts_of(any_model)
    got, told = read(any_model, prompts=[prompt])
    torch.testing.assert_close(got, expected(any_model, [prompt]), atol=1e-4, rtol=0)
    assert told == [(1, len(prompt) + BELOW)]


@pytest.mark.usefixtures("labels")
def test_few_logits_are_held_at_once(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a pass does not depend on how its logits are cut into chunks."""
    want, prompts, lengths = read(llama)[0], prompts_of(llama), list[int]()
    monkeypatch.setattr(chunked, "MOST_LOGITS", 5 * len(llama.tokenizer))

    def make(chunks: Iterator[torch.Tensor]) -> dict[str, torch.Tensor]:
        held = list(chunks)
        lengths.extend(map(len, held))
        return keep(len(TREE.nodes))(iter(held))

    got = read_labels(llama, prompts, TREE, batch_size=4, advance=nothing, make=make)
    torch.testing.assert_close(got["logits_RPV"], want, atol=1e-5, rtol=0)
    assert max(lengths) <= 5


@pytest.mark.usefixtures("labels")
def test_each_process_reads_its_share_of_the_labels(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, one after the other; the second one gets what both have made."""
    prompts, shares = prompts_of(llama), list[Any]()
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda made: shares.append(made) or shares)
    got = torch.empty(0)
    for rank in range(2):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        got, _ = read(llama)
        (mine, other) = shares[-1], sorted(n for numbers, _ in shares[0] for n in numbers)
        assert sorted(n for numbers, _ in mine for n in numbers) == list(range(rank, 12, 2))
        assert other == list(range(0, 12, 2))
    torch.testing.assert_close(got, expected(llama, prompts), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("labels")
def test_a_classification_head_is_read(any_model: LanguageModel) -> None:
    put_head(any_model.network, 3, seed=0)
    head = Branches(((),))
    got, _ = read(any_model, head)
    assert got.shape == (12, 1, 3)
    want = expected(any_model, prompts_of(any_model), head)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def with_network(llama: LanguageModel, network: PreTrainedModel) -> LanguageModel:
    attention.install(network.eval())
    return replace(llama, network=network)


def test_a_model_that_counts_positions_itself_reads_each_path(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    set_seed(0)
    size = len(byte_tokenizer())
    config = BloomConfig(
        vocab_size=size, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2
    )
    model = with_network(llama, BloomForCausalLM(config))
    with caplog.at_level(logging.WARNING, logger="instil"):
        got, told = read(model)
    prompts = prompts_of(model)
    torch.testing.assert_close(got, expected(model, prompts), atol=1e-4, rtol=0)
    assert "BloomForCausalLM cannot read rows of different length with branches" in caplog.text
    assert "the prompt is read again for each label" in caplog.text
    assert sum(tokens for _, tokens in told) > 3 * sum(map(len, QUERIES)) * 2


@pytest.mark.parametrize("window", [24, 400])
def test_layers_that_slide_a_window(llama: LanguageModel, window: int) -> None:
    """A prompt is read once where the window holds all of it."""
    set_seed(0)
    config = MistralConfig(
        vocab_size=len(byte_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
        initializer_range=0.2,
    )
    model = with_network(llama, MistralForCausalLM(config))
    prompts = prompts_of(model)
    torch.testing.assert_close(read(model)[0], expected(model, prompts), atol=1e-4, rtol=0)
    got, told = read(model, prompts=prompts[:1])
    torch.testing.assert_close(got, expected(model, prompts[:1]), atol=1e-4, rtol=0)
    assert (sum(tokens for _, tokens in told) == len(prompts[0]) + BELOW) == (window == 400)
