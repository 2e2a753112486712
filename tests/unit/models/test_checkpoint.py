"""What is no whole causal language model is refused, and the message says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import byte_tokenizer, tiny_llama
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    Qwen3Model,
    T5Config,
    T5ForConditionalGeneration,
)

from instil.errors import UnknownModelError
from instil.models.load import load, outline

V = len(byte_tokenizer())
SMALL: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
TIED = Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True)
Weights = dict[str, torch.Tensor]


def saved(folder: Path, network: PreTrainedModel) -> Path:
    network.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tmp_path: Path, model_folders: dict[str, Path]) -> Path:
    """A whole model, to be damaged."""
    return shutil.copytree(model_folders["llama"], tmp_path / "copy")


def refused(folder: Path) -> str:
    with pytest.raises(UnknownModelError) as caught:
        load(str(folder), dtype="float32")
    assert str(folder) in str(caught.value)
    return str(caught.value)


def changed(folder: Path, change: Callable[[Weights], object]) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configured(folder: Path, **settings: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: LlamaForSequenceClassification(LlamaConfig(**SMALL)), "another output layer"),
        (lambda: Qwen3ForSequenceClassification(TIED), "another output layer"),
        (lambda: BertForMaskedLM(BertConfig(**SMALL)), "another output layer"),
        (lambda: BertLMHeadModel(BertConfig(**SMALL)), "reads later tokens too"),
        (lambda: BartForConditionalGeneration(BartConfig(vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2)), "an encoder-decoder"),
        (lambda: T5ForConditionalGeneration(T5Config(vocab_size=V, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)), "an encoder-decoder"),
    ],
    ids=["classifier", "tied classifier", "masked", "encoder", "bart", "t5"],
)  # fmt: skip
def test_a_model_of_another_kind_is_refused(
    tmp_path: Path, make: Callable[[], PreTrainedModel], why: str
) -> None:
    folder = saved(tmp_path, make())
    message = refused(folder)
    assert "is not a causal language model" in message
    assert why in message
    with pytest.raises(UnknownModelError):  # before weights are loaded
        outline(str(folder))


def test_a_decoder_of_a_family_of_encoders_is_taken(tmp_path: Path) -> None:
    assert load(str(saved(tmp_path, BertLMHeadModel(BertConfig(**SMALL, is_decoder=True)))))


def test_a_base_model_has_no_output_layer_unless_it_is_the_embedding(tmp_path: Path) -> None:
    message = refused(saved(tmp_path / "base", LlamaModel(LlamaConfig(**SMALL))))
    assert "LlamaForCausalLM: a weight has no value in its files" in message
    assert "1 such weights: lm_head.weight" in message
    tied = load(str(saved(tmp_path / "tied", Qwen3Model(TIED))), dtype="float32").network
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def test_a_classifier_that_hides_its_kind_is_known_by_its_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path, Qwen3ForSequenceClassification(TIED))
    assert "score.weight" in refused(configured(folder, architectures=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), "no value.*1 such weights: model.layers.1"),
        (lambda w: w.update({f"module.{k}": w.pop(k) for k in list(w)}), "no value.*lm_head.weight, .* …"),
        (lambda w: w.update({"model.embed_tokens.weight": torch.ones(V + 8, 32)}), "another shape.*embed_tokens"),
        (lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}), "not in the model.*bias"),
        (lambda w: w.update({"model.layers.0.self_attn.q_proj.weight_scale_inv": torch.ones(1)}), "not in the model"),
        (lambda w: w.update({"model.layers.0.mlp.up_proj.lora_A.default.weight": torch.ones(1, 32)}), "not in the model"),
    ],
    ids=["missing", "prefixed", "resized", "bias", "scale", "adapter"],
)  # fmt: skip
def test_weights_that_are_not_those_of_the_model_are_named(
    copy: Path, change: Callable[[Weights], object], message: str
) -> None:
    from re import search

    assert search(message, refused(changed(copy, change)))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.2.eh_proj.weight",
        "v_head.summary.weight",
        "vision_tower.layers.0.weight",
    ],
)
def test_weights_that_the_model_does_not_need_are_no_error(copy: Path, name: str) -> None:
    before = load(str(copy), dtype="float32").network.state_dict()
    changed(copy, lambda w: w.update({name: torch.ones(4)}))
    after = load(str(copy), dtype="float32").network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_weights_in_float8_get_the_chosen_format(copy: Path) -> None:
    small = torch.float8_e4m3fn
    changed(copy, lambda w: w.update({k: v.to(small) for k, v in w.items() if v.ndim == 2}))
    model = load(str(copy), dtype="float32")
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    stored = load_file(copy / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.network.get_output_embeddings().weight, stored.float())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is not a valid JSON file"),
        ("", "is not a valid JSON file"),
        ("[]", "list"),
        ('{"hidden_size": 8}', "without model_type; it has hidden_size"),
        ('{"model_type": "llama", "hidden_size": "big"}', "expected int, got str"),
        ('{"model_type": "new9"}', "does not know the architecture.*'new9'.*newer transformers"),
        ('{"model_type": "new9", "auto_map": {}}', "needs Python code of its own.*runs no code"),
    ],
)
def test_a_config_that_cannot_be_read_is_told(copy: Path, content: str, why: str) -> None:
    from re import search

    (copy / "config.json").write_text(content)
    message = refused(copy)
    assert search(why, message)
    assert "weights of" not in message


def test_code_that_is_not_needed_is_not_run(copy: Path) -> None:
    (copy / "own.py").write_text("raise SystemExit('run')")
    assert load(str(configured(copy, auto_map={"AutoModelForCausalLM": "own.Model"})))


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.invalid/spec/v1\n"])
def test_a_damaged_file_of_weights_is_named(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    assert "got: model.safetensors: Error while deserializing header" in refused(copy)


def test_a_cut_file_of_weights_is_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "got: model.safetensors: " in refused(copy)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_llama(V))
    (folder / "model.safetensors").unlink()
    tiny_llama(V).save_pretrained(folder, max_shard_size="20KB")
    gone = sorted(folder.glob("model-*"))[1]
    gone.unlink()
    assert gone.name in refused(folder)


def test_no_pickle_is_opened(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    message = refused(copy)
    assert "only pytorch_model.bin, a pickle" in message
    assert "weights in safetensors" in message


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_a_quantised_model_without_its_library_says_what_to_install(
    copy: Path, method: str
) -> None:
    settings = {"quant_method": method, "bits": 4}
    message = refused(configured(copy, quantization_config=settings))
    assert "install" in message.partition("allowed")[0]
    assert "install what its quantisation needs, or use the model in bfloat16" in message


def test_a_folder_without_a_tokenizer_says_so(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    message = refused(copy)
    assert "the tokenizer of" in message
    assert "save the tokenizer beside the model" in message


def test_a_broken_generation_config_has_no_effect(copy: Path) -> None:
    (copy / "generation_config.json").write_text("{")
    assert load(str(copy))


def test_a_vocabulary_larger_than_the_embedding_is_refused(copy: Path) -> None:
    tokenizer = byte_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["new"] = 400
    Own = type(tokenizer.backend_tokenizer)
    PreTrainedTokenizerFast(tokenizer_object=Own.from_str(json.dumps(state))).save_pretrained(copy)
    message = refused(copy)
    assert "has no embedding for a token of its tokenizer; got: token 'new' with id 400" in message
    assert f"ids below {V}" in message
    assert "resize_token_embeddings" in message


def test_an_added_token_without_an_embedding_is_refused_where_it_occurs(copy: Path) -> None:
    """Tokenizers of text models may have tokens for images, which no text holds."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(copy)
    model = outline(str(copy))
    model.check_ids([tokenizer("a cat")["input_ids"], []], where="row")
    with pytest.raises(UnknownModelError, match=f"in row 2; got: token '<image>' with id {V}"):
        model.check_ids([[1], tokenizer("an <image>")["input_ids"]], where="row")
