"""Teacher and student: one copy of the weights, or two; students of another shape."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import byte_tokenizer, tiny_llama
from tests.small import QUIET

from instil.errors import ConfigError, TokenizerMismatchError, TuningError, UnknownModelError
from instil.methods import METHODS
from instil.models.load import LanguageModel, load
from instil.models.roles import Models, Reshaped, shared_out, take_over
from instil.models.source import Source
from instil.models.tuning import BitFit, Full, LoRA, Tuning
from instil.system.progress import Display

IDS = torch.tensor([[10, 20, 30, 40, 50]])


@torch.no_grad()
def logits(model: LanguageModel) -> torch.Tensor:
    network: Any = model.network
    return torch.as_tensor(network(input_ids=IDS.to(network.device)).logits)


def loaded(student: Path, teacher: str | None = None, **more: Any) -> Models:
    settings: dict[str, Any] = {"dtype": "float32", "tuning": LoRA(r=2), "seed": 0}
    return Models.load(str(student), teacher, display=QUIET, **(settings | more))


def disturb(models: Models) -> None:
    """Gives the student's adapter weights that do something."""
    for name, weight in models.student.network.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()


def test_a_model_that_teaches_itself_is_loaded_once(model_folders: dict[str, Path]) -> None:
    folder = model_folders["llama"]
    base = logits(load(str(folder), dtype="float32"))
    models = loaded(folder)
    assert models.shared
    assert models.teacher is models.student
    assert not models.student.network.training
    torch.testing.assert_close(logits(models.student), base)  # an adapter starts as nothing
    disturb(models)
    with models.adapter(on=True):
        assert (logits(models.student) - base).abs().max() > 0.1
    with models.adapter(on=False):
        torch.testing.assert_close(logits(models.teacher), base)
    assert (logits(models.student) - base).abs().max() > 0.1
    trained = [n for n, p in models.student.network.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_the_same_model_by_another_name_is_loaded_once(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from instil.models import roles

    folder = model_folders["llama"]
    assert loaded(folder, str(folder)).shared
    monkeypatch.setattr(roles, "resolve", lambda name: "one and the same")
    assert loaded(folder, "bundled:name").shared


def test_another_teacher_has_weights_of_its_own(model_folders: dict[str, Path]) -> None:
    models = loaded(model_folders["llama"], str(model_folders["opt"]))
    assert not models.shared
    teacher = load(str(model_folders["opt"]), dtype="float32")
    torch.testing.assert_close(logits(models.teacher), logits(teacher))
    assert models.teacher.name == str(model_folders["opt"])
    assert models.student.name == str(model_folders["llama"])
    disturb(models)
    torch.testing.assert_close(logits(models.teacher), logits(teacher))
    ours = {p.data_ptr() for p in models.student.network.parameters()}
    assert not ours & {p.data_ptr() for p in models.teacher.network.parameters()}


def test_another_teacher_has_the_student_s_dtype(model_folders: dict[str, Path]) -> None:
    models = loaded(model_folders["llama"], str(model_folders["opt"]), dtype="bfloat16")
    assert (models.teacher.dtype, models.student.dtype) == ("bfloat16", "bfloat16")
    adapter = [p for p in models.student.network.parameters() if p.requires_grad]
    assert {p.dtype for p in adapter} == {torch.float32}


def test_what_is_loaded_is_told(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Display, "note", lambda self, text: told.append(text))
    student, teacher = model_folders["llama"], model_folders["opt"]
    loaded(student)
    loaded(student, str(teacher))
    assert told == [f"loading {name}" for name in (student, student, teacher)]


def test_the_adapter_starts_by_the_seed(model_folders: dict[str, Path]) -> None:
    def start(seed: int) -> torch.Tensor:
        network = loaded(model_folders["llama"], seed=seed).student.network
        return torch.cat([p.flatten() for n, p in network.named_parameters() if "lora_A" in n])

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_a_teacher_of_other_tokens_is_refused(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["one more"])
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TokenizerMismatchError, match="'one more'"):
        loaded(model_folders["llama"], str(tmp_path))
    with pytest.raises(UnknownModelError):
        loaded(model_folders["llama"], str(tmp_path / "gone"))


def test_the_teacher_answers_where_the_context_is_sent(model_folders: dict[str, Path]) -> None:
    models = loaded(model_folders["llama"], str(model_folders["opt"]))
    for method in METHODS.values():
        expected = models.teacher if method.context else models.student
        assert models.model(method) is expected


def test_a_student_that_is_whole_stays_as_it_is(model_folders: dict[str, Path]) -> None:
    models = loaded(model_folders["llama"])
    assert shared_out(models.student.network) is None
    assert models.made_whole(lambda: pytest.fail("it was loaded again")) is models


def test_a_student_that_was_shared_out_is_loaded_again_with_what_it_has_learnt(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from instil.models import roles

    models = loaded(model_folders["llama"])
    disturb(models)
    weights = models.student.network.named_parameters()
    trained = {n: p.detach().clone() for n, p in weights if p.requires_grad}
    monkeypatch.setattr(roles, "shared_out", lambda student: trained)
    whole = models.made_whole(lambda: loaded(model_folders["llama"], seed=5))
    assert whole.student is not models.student
    torch.testing.assert_close(logits(whole.student), logits(models.student))


def test_trained_weights_are_taken_over_by_their_names(llama: LanguageModel) -> None:
    other = copy.deepcopy(llama.network)
    names = [name for name, _ in llama.network.named_parameters()][:3]
    trained = {name: torch.full_like(other.get_parameter(name), 7.0) for name in names[:2]}
    before = other.get_parameter(names[2]).clone()
    place = other.get_parameter(names[0]).data_ptr()
    take_over(other, trained)
    assert all((other.get_parameter(name) == 7).all() for name in names[:2])
    assert torch.equal(other.get_parameter(names[2]), before)
    assert other.get_parameter(names[0]).data_ptr() == place


def test_a_model_that_is_not_reshaped_is_the_model(model_folders: dict[str, Path]) -> None:
    folder = str(model_folders["opt"])
    plain = Reshaped(folder, dtype="float32").load(tuning=None, seed=0)
    assert torch.equal(logits(plain), logits(load(folder, dtype="float32")))
    assert type(plain.network).__name__ == "OPTForCausalLM"


TUNINGS: list[Tuning | None] = [None, LoRA(r=2), Full(), BitFit()]


@pytest.mark.parametrize("tuning", TUNINGS, ids=lambda one: one.name if one else "none")
@pytest.mark.parametrize("labels", [None, 3], ids=["language model", "head"])
def test_a_student_has_its_layers_and_outputs_and_trains_what_its_tuning_says(
    model_folders: dict[str, Path], tuning: Tuning | None, labels: int | None
) -> None:
    shape = Reshaped(str(model_folders["opt"]), dtype="float32", keep_layers=1, labels=labels)
    model = shape.load(tuning=tuning, seed=0)
    network: Any = model.network
    assert logits(model).shape[-1] == (labels or len(model.tokenizer))
    assert network.config.num_hidden_layers == 1
    assert not any(".layers.1." in name for name, _ in network.named_parameters())
    assert not network.training
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    head = {n for n, p in network.named_parameters() if p.shape[0] == 3}
    assert bool(head) == (labels is not None)
    if tuning is None:
        return
    every = {n for n, _ in network.named_parameters()}
    kinds = {
        "full": every,
        "bitfit": {n for n in every if n.endswith("bias")},
        "lora": {n for n in every if "lora_" in n},
    }
    assert trained - head == kinds[tuning.name] - head
    assert bool(head & trained) == (labels is not None)


def test_a_student_of_another_shape_starts_by_the_seed(model_folders: dict[str, Path]) -> None:
    shape = Reshaped(str(model_folders["opt"]), dtype="float32", labels=3)
    same, again, other = (logits(shape.load(tuning=None, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


@pytest.mark.parametrize("tuning", [LoRA(), Full()], ids=lambda one: one.name)
def test_a_base_that_is_trained_is_float32_whatever_it_is_computed_in(
    model_folders: dict[str, Path], tuning: Tuning
) -> None:
    shape = Reshaped(str(model_folders["opt"]), dtype="bfloat16")
    model = shape.load(tuning=tuning, seed=0)
    assert model.dtype == ("float32" if tuning.trains_base else "bfloat16")
    assert logits(model).dtype == torch.bfloat16


def test_what_a_model_does_not_allow_is_refused(model_folders: dict[str, Path]) -> None:
    folder = str(model_folders["llama"])
    with pytest.raises(ConfigError, match=r"student\.keep_layers"):
        Reshaped(folder, dtype="float32", keep_layers=5).load(tuning=None, seed=0)
    with pytest.raises(TuningError, match="has none"):
        Reshaped(folder, dtype="float32").load(tuning=BitFit(), seed=0)
    with pytest.raises(TuningError, match="float16"):
        Reshaped(folder, dtype="float16").load(tuning=Full(), seed=0)


def test_an_adapter_names_the_commit_of_its_base(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for commit in (None, "c0ffee"):
        monkeypatch.setattr(Source, "commit", commit)
        network: Any = loaded(model_folders["llama"]).student.network
        config = network.peft_config["default"]
        assert config.revision == commit
        assert config.base_model_name_or_path == str(model_folders["llama"])
