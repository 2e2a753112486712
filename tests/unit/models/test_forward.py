"""What a model makes of a batch before its output layer, and what its output layer makes of that."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.conftest import byte_tokenizer
from tests.small import pairs_of
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from instil.models import chunked
from instil.models.batch import Batch, collate, pack
from instil.models.forward import Logits, completion_logits, read
from instil.models.load import LanguageModel


def batch_of(model: LanguageModel, *, packed: bool) -> Batch:
    pairs = pairs_of(model)
    prompts, completions = [p.student_prompt for p in pairs], [p.completion for p in pairs]
    if packed:
        return pack(prompts, completions, masked=False)
    return collate(prompts, completions, pad_id=model.pad_id)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_hidden_states_through_the_head_are_the_logits(
    any_model: LanguageModel, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, vocabulary = batch_of(any_model, packed=packed), len(any_model.tokenizer)
    monkeypatch.setattr(chunked, "MOST_LOGITS", 4 * vocabulary)
    with torch.no_grad():
        expected = completion_logits(any_model.network, batch)
        reading = read(any_model.network, batch)
        assert reading.head is not None
        pieces = list(Logits(any_model.network, batch).chunks())
        (whole,) = Logits(any_model.network, batch, whole=True).chunks()
    assert reading.layers == []
    assert len(reading.hidden_ND) == len(batch.completion_N) > 8
    assert torch.equal(whole, expected)
    assert [len(piece) for piece in pieces][:2] == [4, 4]
    torch.testing.assert_close(torch.cat(pieces), expected, atol=1e-5, rtol=1e-5)


def test_the_output_layer_runs_on_one_position_and_is_left_as_it_was(
    llama: LanguageModel,
) -> None:
    seen: list[int] = []
    layer = llama.network.get_output_embeddings()
    layer.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    hooks = len(layer._forward_pre_hooks)
    for _ in range(2):
        read(llama.network, batch_of(llama, packed=False))
    assert seen == [2, 2, 1]  # at first, an enlarged copy of the position is compared
    assert len(layer._forward_pre_hooks) == hooks


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_layers_are_the_models_hidden_states_where_a_completion_token_is_predicted(
    any_model: LanguageModel, packed: bool
) -> None:
    batch, layers = batch_of(any_model, packed=packed), any_model.network.config.num_hidden_layers
    with torch.no_grad():
        got = read(any_model.network, batch, layers=True).layers
        assert len(got) == layers + 1
        at = 0
        for pair in pairs_of(any_model):
            ids = torch.tensor([[*pair.student_prompt, *pair.completion]], device=any_model.device)
            states = any_model.network(input_ids=ids, output_hidden_states=True).hidden_states
            count = len(pair.completion)
            for mine, whole in zip(got, states, strict=True):
                expected = whole[0, len(pair.student_prompt) - 1 : -1]
                torch.testing.assert_close(mine[at : at + count], expected, atol=1e-4, rtol=1e-4)
            at += count
    assert at == len(batch.completion_N)


SIZES = {
    "vocab_size": len(byte_tokenizer()),
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def gemma(cap: float | None) -> Gemma2ForCausalLM:
    config = Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=cap)
    return Gemma2ForCausalLM(config).eval()


def granite(scaling: float) -> GraniteForCausalLM:
    return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=scaling)).eval()


SCALED = {
    "Gemma-2": (lambda: gemma(30.0), 1.0, 30.0),  # these logits are below 1, so the cap is tiny
    "Gemma-2 without a cap": (lambda: gemma(None), 1.0, None),
    "Granite": (lambda: granite(3.0), 1 / 3, None),
}


@pytest.mark.parametrize("family", SCALED)
def test_a_known_scale_or_cap_is_applied_to_a_few_positions_at_a_time(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, scale, cap = SCALED[family]
    network = make()
    monkeypatch.setattr(chunked, "MOST_LOGITS", 2 * len(byte_tokenizer()))
    batch = collate([[5, 9], [8, 8, 8]], [[6, 2, 4], [7, 2]], pad_id=0)
    head = read(network, batch).head
    assert head is not None
    assert (head.scale, head.cap) == (pytest.approx(scale), cap)
    with torch.no_grad():
        whole, asked = completion_logits(network, batch), Logits(network, batch)
        pieces = list(asked.chunks())
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-6, rtol=1e-5)


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_found_out_once() -> None:
    """The configuration hides the cap, which changes these small logits by less than 0.1 %."""
    network = gemma(30.0)
    calls: list[int] = []
    network.register_forward_pre_hook(lambda module, args: calls.append(1))
    usual = network.config.final_logit_softcapping
    network.config = copy.copy(network.config)
    batch = collate([[5, 9], [8, 8, 8]], [[6, 2, 4], [7, 2]], pad_id=0)
    forward = network.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        network.config.final_logit_softcapping = usual
        try:
            return forward(*args, **kwargs)
        finally:
            network.config.final_logit_softcapping = None

    network.forward = capped  # type: ignore[method-assign]
    network.config.final_logit_softcapping = None
    with torch.no_grad():
        whole, asked = completion_logits(network, batch), Logits(network, batch)
        assert asked.positions == len(batch.completion_N)
        assert torch.equal(asked.part(1, 3), whole[1:3])
        assert len(calls) == 3
        Logits(network, batch)
        assert len(calls) == 4


def test_an_error_inside_the_model_leaves_no_hook_behind(llama: LanguageModel) -> None:
    layer = llama.network.get_output_embeddings()
    hooks = len(layer._forward_pre_hooks)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no memory")

    handle = llama.network.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        read(llama.network, batch_of(llama, packed=False))
    handle.remove()
    assert len(layer._forward_pre_hooks) == hooks
