from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from instil.errors import TuningError
from instil.evaluation.labels import label_logprobs
from instil.losses import LabelKL
from instil.losses.label_kl import LabelTargets
from instil.models.load import LanguageModel, load, load_for_training
from instil.models.reshape import put_head
from instil.models.roles import Reshaped
from instil.models.tuning import BitFit, Full, LoRA, Tuning
from instil.prompts.labels import HEAD, LabelTokens
from instil.recipe.sections import Training
from instil.system.progress import Display
from instil.teacher.labels import LabelLesson
from instil.training import trainer

# Two labels of one byte and one of two.
CHOICES = LabelTokens(("a", "b", "c"), (((70,),), ((71,),), ((72, 73),)))
PROMPTS = [list(text) for text in (b"red fish", b"blue", b"one more fish", b"two")]
QUIET = Display(quiet=True)
Method = Literal["distillation", "vanilla_fine_tuning"]


def trained(network: Any) -> dict[str, torch.Tensor]:
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


def nothing(rows: int, tokens: int) -> None:
    pass


def make(
    folder: Path,
    tuning: str,
    *,
    method: Method = "distillation",
    dtype: str = "float32",
    **training: Any,
) -> Student:
    settings = Training(**{"max_steps": 3, "batch_size": 2, "learning_rate": 1e-2} | training)
    chosen = {"full": Full(), "bitfit": BitFit(), "lora": LoRA()}[tuning]
    head = method == "vanilla_fine_tuning"
    shape = Reshaped(str(folder), dtype=dtype, labels=3 if head else None)
    model = shape.load(tuning=chosen, seed=0)
    return Student(model, chosen, settings, None if head else CHOICES)


@dataclass(frozen=True)
class Student:
    """A student of labels, as a cell makes it."""

    model: LanguageModel
    tuning: Tuning
    settings: Training
    tokens: LabelTokens | None

    def logprobs(self) -> torch.Tensor:
        return label_logprobs(self.model, PROMPTS, self.tokens, batch_size=4, advance=nothing)

    def save(self, folder: Path) -> None:
        self.tuning.save(self.model.network, folder, head=self.tokens is None)
        if (folder / "model").exists():
            self.model.tokenizer.save_pretrained(folder / "model")

    def train(self, scratch: Path) -> None:
        probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
        branches = HEAD if self.tokens is None else self.tokens.branches
        lessons = [
            LabelLesson(
                prompt,
                branches,
                LabelTargets(torch.tensor([n % 3]), probs[n : n + 1], None, self.tokens),
            )
            for n, prompt in enumerate(PROMPTS)
        ]
        trainer.train(
            self.model.network,
            lessons,
            objective=LabelKL(alpha=0.5, over="labels"),
            settings=self.settings,
            seed=0,
            pad_id=self.model.pad_id,
            checkpoints=scratch,
            resumable=False,
            advance=nothing,
            display=QUIET,
        )


def test_bitfit_refuses_a_model_without_biases(llama: LanguageModel) -> None:
    with pytest.raises(TuningError) as caught:
        BitFit().apply(llama.network, seed=0)
    message = str(caught.value)
    assert llama.name in message
    assert "LlamaForCausalLM with 0 bias terms" in message
    assert "lora" in message


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_bitfit_trains_exactly_the_biases(model_folders: dict[str, Path], family: str) -> None:
    network = BitFit().apply(load(str(model_folders[family]), dtype="float32").network, seed=0)
    names = {name for name, _ in network.named_parameters() if name.endswith("bias")}
    assert set(trained(network)) == names
    assert len(names) == {"opt": 17, "gpt2": 13}[family]
    assert all(weight.ndim == 1 for weight in trained(network).values())


@pytest.mark.parametrize("tuning", [BitFit(), LoRA()], ids=["bitfit", "lora"])
def test_a_new_head_is_trained_whole(model_folders: dict[str, Path], tuning: BitFit | LoRA) -> None:
    model = load(str(model_folders["opt"]), dtype="float32").network
    head = put_head(model, 3, seed=0)
    plain = set(trained(tuning.apply(load(model.name_or_path).network, seed=0)))
    network = tuning.apply(model, seed=0, head=head)
    (new,) = set(trained(network)) - plain
    assert trained(network)[new].shape == (3, 32)
    assert set(trained(network)) > plain


def test_full_trains_all(any_model: LanguageModel) -> None:
    any_model.network.requires_grad_(False)
    network = Full().apply(any_model.network, seed=0)
    assert set(trained(network)) == {name for name, _ in network.named_parameters()}


def test_lora_trains_the_adapter_alone_on_every_linear_layer(any_model: LanguageModel) -> None:
    network = LoRA(r=2).apply(any_model.network, seed=0)
    assert trained(network)
    assert all("lora_" in name for name in trained(network))
    layers = {name.partition(".lora_")[0] for name in trained(network)}
    per_layer = {
        "LlamaForCausalLM": 7,
        "Qwen3ForCausalLM": 7,
        "OPTForCausalLM": 6,
        "GPT2LMHeadModel": 4,
    }
    assert len(layers) == 2 * per_layer[type(any_model.network).__name__]
    assert not any("lm_head" in layer for layer in layers)


def test_lora_on_named_layers(llama: LanguageModel) -> None:
    network = LoRA(r=2, modules=("q_proj", "v_proj")).apply(llama.network, seed=0)
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in trained(network)}
    assert layers == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    "modules",
    [
        ("q_proj", "c_attn"),
        pytest.param(
            ("input_layernorm",),
        ),
    ],
    ids=["of another model", "not linear"],
)
def test_lora_on_layers_that_it_cannot_change_is_refused(
    llama: LanguageModel, modules: tuple[str, ...]
) -> None:
    with pytest.raises(TuningError) as caught:
        LoRA(modules=modules).apply(llama.network, seed=0)
    assert f"'{modules[-1]}'" in str(caught.value)
    assert "down_proj, gate_proj, k_proj" in str(caught.value)


@pytest.mark.parametrize(
    ("tuning", "trainable", "refused"),
    [(LoRA(), True, False), (LoRA(), False, True), (Full(), True, True), (BitFit(), True, True)],
)
def test_a_quantised_model_that_cannot_be_trained_is_refused_before_the_work(
    model_folders: dict[str, Path], tuning: Tuning, trainable: bool, refused: bool
) -> None:
    network: Any = load(str(model_folders["opt"]), dtype="float32").network
    config = SimpleNamespace(quant_method="mxfp4")
    network.hf_quantizer = SimpleNamespace(is_trainable=trainable, quantization_config=config)
    if not refused:
        assert trained(tuning.apply(network, seed=0))
        return
    with pytest.raises(
        TuningError, match=r"is quantised.*got: mxfp4; mend: use the model in bfloat16"
    ):
        tuning.apply(network, seed=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuning", ["full", "bitfit", "lora"])
def test_whatever_is_trained_is_float32(
    model_folders: dict[str, Path], tuning: str, dtype: str
) -> None:
    student = make(model_folders["opt"], tuning, dtype=dtype)
    assert {weight.dtype for weight in trained(student.model.network).values()} == {torch.float32}
    frozen = {p.dtype for p in student.model.network.parameters() if not p.requires_grad}
    expected = {"full": set(), "bitfit": {torch.float32}, "lora": {getattr(torch, dtype)}}
    assert frozen == expected[tuning]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_step_in_bfloat16_may_be_smaller_than_bfloat16_can_hold(
    model_folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    one_small_step = {"max_steps": 1, "learning_rate": 1e-6, "warmup_share": 0}
    student = make(model_folders[family], "full", dtype="bfloat16", **one_small_step)
    before = {n: p.detach().clone() for n, p in student.model.network.named_parameters()}
    student.train(tmp_path)
    changed = rounded_away = 0
    for name, weight in student.model.network.named_parameters():
        moved = weight.detach() - before[name]
        assert moved.abs().max() < 1e-5
        changed += int((moved != 0).sum())
        same = weight.detach().bfloat16() == before[name].bfloat16()
        rounded_away += int(((moved != 0) & same).sum())
    assert changed > 1000
    assert rounded_away > 0.9 * changed


def test_bfloat16_is_what_it_is_computed_in(model_folders: dict[str, Path]) -> None:
    exact, rounded = (
        make(model_folders["opt"], "full", dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    a, b = (student.logprobs() for student in (exact, rounded))
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, atol=0.2, rtol=0)


@pytest.mark.parametrize("tuning", ["full", "bitfit"])
def test_float16_is_refused_where_the_base_is_trained(
    model_folders: dict[str, Path], tuning: str
) -> None:
    with pytest.raises(TuningError, match=r"got: dtype: float16.*bfloat16.*lora"):
        make(model_folders["opt"], tuning, dtype="float16")


def load_back(folder: Path, saved: Path, tuning: str, method: Method) -> LanguageModel:
    """As a user would, with the libraries that wrote the files."""
    model = load_for_training(str(folder), dtype="float32")
    network: Any = model.network
    if method == "vanilla_fine_tuning":
        put_head(network, 3, seed=99)
    if tuning == "lora":
        network = PeftModel.from_pretrained(network, saved / "adapter")
    elif tuning == "bitfit" or method == "vanilla_fine_tuning":
        missing = network.load_state_dict(load_file(saved / "trained.safetensors"), strict=False)
        assert not missing.unexpected_keys
    else:
        network = load(str(saved / "model"), dtype="float32").network
    return replace(model, network=network.eval(), fingerprint="")


ALLOWED = [
    (family, tuning, method)
    for family, tuning, method in itertools.product(
        ["llama", "opt", "gpt2"],
        ["full", "bitfit", "lora"],
        ["distillation", "vanilla_fine_tuning"],
    )
    if (family, tuning) != ("llama", "bitfit")
]


@pytest.mark.parametrize(("family", "tuning", "method"), ALLOWED)
def test_what_was_trained_is_saved_and_loads_back(
    model_folders: dict[str, Path], tmp_path: Path, family: str, tuning: str, method: Method
) -> None:
    student = make(model_folders[family], tuning, method=method)
    before = student.logprobs()
    weights = {n: p.detach().clone() for n, p in student.model.network.named_parameters()}
    student.train(tmp_path / "scratch")
    student.save(tmp_path)
    expected = student.logprobs()
    assert (expected - before).abs().max() > 0.05
    for name, weight in student.model.network.named_parameters():
        assert torch.equal(weight, weights[name]) or weight.requires_grad
    written = {path.name for path in tmp_path.iterdir()} - {"scratch"}
    headed = (tuning, method) == ("full", "vanilla_fine_tuning")
    saved = {"full": "model", "bitfit": "trained.safetensors", "lora": "adapter"}
    assert written == {saved["bitfit" if headed else tuning]}
    assert not list(tmp_path.rglob("*.bin"))
    again = load_back(model_folders[family], tmp_path, tuning, method)
    reloaded = replace(student, model=again).logprobs()
    torch.testing.assert_close(reloaded, expected, atol=1e-5, rtol=1e-5)
