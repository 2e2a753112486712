"""Weights in few bits, over several devices, with another attention, and in older files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from tests.small import QUIET

from instil.errors import ConfigError, TuningError, UnknownModelError
from instil.models import loading
from instil.models.load import LanguageModel, load
from instil.models.loading import Loading, Quantization
from instil.models.roles import Models
from instil.models.tuning import BitFit, Full, LoRA
from instil.recipe.canonical import effective
from instil.recipe.recipe import Recipe

HUB_ID, COMMIT = "someone/older-model", "1" * 40
IDS = [[3, 8, 20, 41, 9, 77, 12]]


def few(bits: Literal[4, 8], *, teacher: bool = True) -> Loading:
    return Loading(quantization=Quantization(bits=bits, teacher=teacher))


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        found: Any = model.network(torch.tensor(IDS)).logits.float()
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize(("bits", "layer"), [(4, Linear4bit), (8, Linear8bitLt)])
def test_a_model_in_few_bits_predicts_nearly_what_it_did(
    model_folders: dict[str, Path], llama: LanguageModel, bits: Literal[4, 8], layer: type
) -> None:
    model = load(str(model_folders["llama"]), dtype="float32", how=few(bits))
    assert sum(isinstance(module, layer) for module in model.network.modules()) > 0
    assert model.fingerprint != llama.fingerprint
    before, after = logits(llama), logits(model)
    error = (before - after).abs().mean() / before.abs().mean()
    assert 0 < error < (0.35 if bits == 4 else 0.1)


def test_other_bits_are_another_model(model_folders: dict[str, Path]) -> None:
    name = str(model_folders["llama"])
    four, eight = (load(name, how=few(bits)).fingerprint for bits in (4, 8))
    assert four != eight
    assert load(name, how=few(4)).fingerprint == four


def test_an_adapter_is_trained_on_four_bits(model_folders: dict[str, Path]) -> None:
    name = str(model_folders["llama"])
    models = Models.load(
        name, None, dtype="float32", tuning=LoRA(r=2), seed=0, display=QUIET, how=few(4)
    )
    assert models.shared
    student: Any = models.student.network
    trained = {name for name, weight in student.named_parameters() if weight.requires_grad}
    assert all("lora" in name for name in trained)
    student.train()
    student(torch.tensor(IDS), labels=torch.tensor(IDS)).loss.backward()
    ups = [weight.grad for name, weight in student.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in ups)


def test_the_teacher_may_be_whole(model_folders: dict[str, Path], llama: LanguageModel) -> None:
    name, how = str(model_folders["llama"]), few(8, teacher=False)
    models = Models.load(
        name, None, dtype="float32", tuning=LoRA(r=2), seed=0, display=QUIET, how=how
    )
    assert not models.shared
    assert models.teacher.fingerprint == llama.fingerprint != models.student.fingerprint
    assert torch.equal(logits(models.teacher), logits(llama))


def test_a_student_that_nobody_teaches_has_no_second_copy() -> None:
    settings = {"model": "m/m", "task": {"name": "gsm8k"}, "method": "pattern_fine_tuning"}
    one, two = (
        effective(Recipe.parse(settings | {"quantization": {"bits": 4, "teacher": teacher}}))
        for teacher in (True, False)
    )
    assert one == two


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tuning": {"name": "full"}, "task": {"name": "sentiment"}},
            "tuning full trains the weights",
        ),
        ({"teacher": {"engine": {"name": "vllm"}}}, "an engine serves a teacher in dtype"),
        ({"evaluation": {"engine": {"name": "vllm"}}}, "an engine serves the student's base"),
    ],
)
def test_what_needs_whole_weights_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.parse({"model": "m/m", "quantization": {"bits": 4}, **settings})


@pytest.mark.parametrize("tuning", [Full(), BitFit()])
def test_only_an_adapter_is_trained_on_few_bits(
    model_folders: dict[str, Path], tuning: Full | BitFit
) -> None:
    model = load(str(model_folders["opt"]), how=few(8))
    with pytest.raises(TuningError, match="is quantised, and its weights cannot be trained"):
        tuning.apply(model.network, seed=0)


def test_a_quantised_model_is_not_quantised_again() -> None:
    with pytest.raises(UnknownModelError, match=r"m is quantised already.*leave quantization out"):
        few(4).options("m", torch.float32, quantised=True)


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(UnknownModelError, match=r"need the library.*pip install .instil\[quant\]"):
        few(4).options("m", torch.float32, quantised=False)


def test_attention_by_name_predicts_the_same(
    model_folders: dict[str, Path], llama: LanguageModel
) -> None:
    name = str(model_folders["llama"])
    model = load(name, dtype="float32", how=Loading(attn_implementation="eager"))
    assert model.network.config._attn_implementation == "eager"
    assert model.fingerprint == llama.fingerprint
    torch.testing.assert_close(logits(model), logits(llama))


def test_an_attention_that_is_not_installed_is_named(model_folders: dict[str, Path]) -> None:
    how = Loading(attn_implementation="flash_attention_2")
    with pytest.raises(UnknownModelError, match="leave attn_implementation out") as caught:
        load(str(model_folders["llama"]), how=how)
    assert "flash" in str(caught.value).lower()


def test_a_model_over_all_devices_predicts_the_same(
    model_folders: dict[str, Path], llama: LanguageModel
) -> None:
    model = load(str(model_folders["llama"]), dtype="float32", how=Loading(device_map="auto"))
    assert torch.equal(logits(model), logits(llama))


def test_each_process_cannot_have_all_devices(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instil.system.processes.count", lambda: 2)
    with pytest.raises(TuningError, match="2 processes, each with a model of its own"):
        Loading(device_map="auto").options("m", torch.float32, quantised=False)


def test_a_model_that_does_not_fit_its_accelerators_is_refused(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = llama.network
    network.hf_device_map = {"model.layers.0": 0, "model.layers.1": "disk"}
    monkeypatch.setattr("instil.models.number_format.default_device", lambda: torch.device("cuda"))
    with pytest.raises(UnknownModelError, match=r"1 of 2 parts left outside.*bits: 4"):
        Loading(device_map="auto").check("m", network)


@pytest.fixture
def older(model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with a model that has no safetensors: the folder of its files."""
    from safetensors.torch import load_file

    folder = tmp_path / "cache" / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    shutil.copytree(model_folders["llama"], snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


def test_an_older_model_on_the_hub_is_read(older: Path, llama: LanguageModel) -> None:
    model = load(HUB_ID, dtype="float32")
    assert torch.equal(logits(model), logits(llama))


def test_a_pickle_with_code_is_not_run(older: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "was-run",)

    torch.save({"weight": Attack()}, older / "pytorch_model.bin")
    with pytest.raises(
        UnknownModelError, match="the weights of someone/older-model cannot be read"
    ):
        load(HUB_ID, dtype="float32")
    assert not (tmp_path / "was-run").exists()
