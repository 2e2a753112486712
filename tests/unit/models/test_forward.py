"""What a model makes of a batch before its output layer, and what its output layer makes of that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conftest import byte_tokenizer
from tests.small import pairs_of
from transformers import Gemma2Config, Gemma2ForCausalLM

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
    read(llama.network, batch_of(llama, packed=False))
    assert set(seen) == {1}
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
            ids = torch.tensor([[*pair.student_prompt, *pair.completion]])
            states = any_model.network(input_ids=ids, output_hidden_states=True).hidden_states
            count = len(pair.completion)
            for mine, whole in zip(got, states, strict=True):
                expected = whole[0, len(pair.student_prompt) - 1 : -1]
                torch.testing.assert_close(mine[at : at + count], expected, atol=1e-4, rtol=1e-4)
            at += count
    assert at == len(batch.completion_N)


def test_a_model_that_caps_its_logits_has_no_head() -> None:
    network = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(byte_tokenizer()),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            initializer_range=0.2,
            final_logit_softcapping=2.0,
        )
    ).eval()
    batch = collate([[5, 9], [8, 8, 8]], [[6, 2, 4], [7, 2]], pad_id=0)
    assert read(network, batch).head is None
    with torch.no_grad():
        whole, asked = completion_logits(network, batch), Logits(network, batch)
    assert asked.positions == len(batch.completion_N)
    assert torch.equal(asked.part(1, 3), whole[1:3])
    network.config.final_logit_softcapping = None
    assert read(network, batch).head is not None


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
