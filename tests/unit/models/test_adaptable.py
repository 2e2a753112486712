"""The layers that get an adapter, by architecture."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from instil.errors import TuningError
from instil.models.load import LanguageModel
from instil.models.tuning import LoRA

IDS = torch.tensor([[10, 20, 30, 40, 50, 60]])
BASE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "falcon": {"alibi": False, "multi_query": True},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "mamba_chunk_size": 8},
    "gpt_oss": {**EXPERTS, "sliding_window": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8}
    | {"use_mamba_kernels": False, "num_experts_per_tok": 1},
    "llama4_text": {**EXPERTS, "num_experts_per_tok": 1, "intermediate_size_mlp": 48},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "mixtral": EXPERTS,
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 24},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "n_mamba_heads": 4}
    | {"num_hidden_layers": 4, "mamba_headdim": 16, "mamba_d_state": 8, "mamba_ngroups": 1}
    | {"hybrid_layer_ids": [1, 3], "num_mem_blocks": 1, "num_key_value_heads": 4, "chunk_size": 8},
}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
DENSE = {"gate_proj", "up_proj", "down_proj"}
ADAPTED = {
    "falcon": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "falcon_h1": {*ATTENTION, *DENSE, "in_proj"},
    "gpt_oss": ATTENTION,
    "jamba": {*ATTENTION, *DENSE, "in_proj"},
    "llama4_text": {*ATTENTION, *DENSE},
    "mamba": {"in_proj"},
    "mamba2": {"in_proj"},
    "mixtral": {*ATTENTION, "experts", "base_layer"},
    "qwen3_moe": {*ATTENTION, "experts", "base_layer"},
    "zamba2": {"in_proj", "linear"},
}


def tiny(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **BASE | SETTINGS[family])
    network: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return network.eval()


def adapted(network: Any) -> set[str]:
    """The last parts of the names of the layers that have an adapter."""
    layers = {n.partition(".lora_")[0] for n, p in network.named_parameters() if p.requires_grad}
    return {name.rpartition(".")[2] for name in layers}


def disturb(network: Any) -> None:
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)


@pytest.mark.filterwarnings("ignore")  # of the architectures: kernels that are not installed
@pytest.mark.parametrize("family", ADAPTED)
def test_each_architecture_trains_and_is_read_by_plain_peft(tmp_path: Path, family: str) -> None:
    """What is saved answers the same, as an adapter and merged, and every weight has a gradient."""
    network: Any = LoRA(r=2).apply(tiny(family), seed=0)
    assert adapted(network) == ADAPTED[family]
    disturb(network)
    network(IDS).logits.square().mean().backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    with torch.no_grad():
        expected = network(IDS).logits
        base = tiny(family)(IDS).logits
        assert (expected - base).abs().max() > 1e-3
        network.save_pretrained(tmp_path, save_embedding_layers=False)
        again: Any = PeftModel.from_pretrained(tiny(family), str(tmp_path)).eval()
        torch.testing.assert_close(again(IDS).logits, expected)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")  # of peft, on transposed weights
def test_a_dense_model_has_the_layers_that_peft_calls_all_linear(any_model: LanguageModel) -> None:
    plain = get_peft_model(
        copy.deepcopy(any_model.network),
        LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    ours = LoRA().apply(any_model.network, seed=0)
    assert adapted(ours) == adapted(plain)
    assert ours.peft_config["default"].target_modules == plain.peft_config["default"].target_modules


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "module", "why"),
    [
        ("mamba", "out_proj", "kernels of a state-space mixer read its weight directly"),
        ("llama4_text", "router", "it belongs to a router"),
        ("zamba2", "q_proj", "another layer has the same weight"),
    ],
)
def test_a_named_layer_that_can_have_no_adapter_is_refused(
    family: str, module: str, why: str
) -> None:
    with pytest.raises(TuningError, match=f"{module!r} that can have an adapter; got: {why}"):
        LoRA(modules=(module,)).apply(tiny(family), seed=0)


def test_an_output_layer_that_is_the_embedding_is_refused(loaded: dict[str, LanguageModel]) -> None:
    tied, untied = (copy.deepcopy(loaded[family].network) for family in ("qwen3", "llama"))
    with pytest.raises(TuningError, match=r"'lm_head' that can have.*another layer has the same"):
        LoRA(modules=("lm_head",)).apply(tied, seed=0)
    assert adapted(LoRA(modules=("lm_head",)).apply(untied, seed=0)) == {"lm_head"}


def test_layers_of_a_subclass_can_be_named() -> None:
    network = LoRA(modules=("dense",)).apply(tiny("falcon"), seed=0)
    assert adapted(network) == {"dense"}
    assert network.peft_config["default"].target_modules == {"dense"}


def test_what_peft_refuses_is_told(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise ValueError("not this one\nsecond line")

    monkeypatch.setattr("peft.get_peft_model", refuse)
    with pytest.raises(TuningError, match=r"got: not this one; mend: .*--set 'tuning.modules="):
        LoRA().apply(llama.network, seed=0)


def test_only_the_named_blocks_get_an_adapter(llama: LanguageModel) -> None:
    student: Any = LoRA(r=2, layers=(1,), modules=("q_proj", "up_proj")).apply(
        llama.network, seed=0
    )
    adapted = {name.rpartition(".lora_A")[0] for name, _ in student.named_modules()} - {""}
    assert {name.partition("base_model.model.model.")[2] for name in adapted} == {
        "layers.1.self_attn.q_proj",
        "layers.1.mlp.up_proj",
    }


def test_a_block_that_is_not_there_is_named(llama: LanguageModel) -> None:
    with pytest.raises(
        TuningError, match=r"tuning.layers: LlamaForCausalLM has no block 7.*0 to 1"
    ):
        LoRA(layers=(0, 7)).apply(llama.network, seed=0)
