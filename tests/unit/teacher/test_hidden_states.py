"""A teacher that runs beside its student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import CONTEXT, models_of, pairs_of, target_rows, train_on
from torch import Tensor

from instil.losses import HiddenState
from instil.models.batch import collate
from instil.models.forward import read
from instil.models.load import LanguageModel, load
from instil.models.roles import Models
from instil.prompts.context import Context
from instil.recipe.recipe import Recipe
from instil.targets.prediction import TargetRow
from instil.teacher.hidden_states import OnlineTeacher


def teacher_of(models: Models, context: Context) -> OnlineTeacher:
    prompts = [pair.teacher_prompt for pair in pairs_of(models.teacher, context)]
    return OnlineTeacher.of(models.teacher, prompts, lambda: models.adapter(on=False))


def taught(online: OnlineTeacher, context: Context) -> list[Tensor]:
    pairs = pairs_of(online.model, context)
    batch = online.collate([p.teacher_prompt for p in pairs], [p.completion for p in pairs])
    return online.hidden_states(batch)


def learnt(models: Models) -> list[Tensor]:
    """The student's hidden states of the same completions."""
    pairs = pairs_of(models.teacher)
    batch = collate([p.student_prompt for p in pairs], [p.completion for p in pairs], pad_id=0)
    return read(models.student.network, batch, layers=True).layers


def test_without_a_context_a_student_at_its_start_is_its_teacher(any_model: LanguageModel) -> None:
    models = models_of(any_model)
    online = teacher_of(models, Context())
    assert online.prefix.length > 0
    apart = HiddenState().hidden(learnt(models), taught(online, Context()))
    assert apart.max().item() == pytest.approx(0, abs=1e-6)
    under = HiddenState().hidden(learnt(models), taught(teacher_of(models, CONTEXT), CONTEXT))
    assert under.mean() > 0.01


def test_hidden_states_are_those_of_the_plain_forward_under_the_context(
    llama: LanguageModel,
) -> None:
    models = models_of(llama)
    got, at = taught(teacher_of(models, CONTEXT), CONTEXT), 0
    for pair in pairs_of(llama):
        ids = torch.tensor([[*pair.teacher_prompt, *pair.completion]], device=llama.device)
        with torch.no_grad(), models.adapter(on=False):
            states = models.teacher.network(input_ids=ids, output_hidden_states=True).hidden_states
        for mine, whole in zip(got, states, strict=True):
            expected = whole[0, len(pair.teacher_prompt) - 1 : -1]
            torch.testing.assert_close(
                mine[at : at + len(expected)], expected, atol=1e-4, rtol=1e-4
            )
        at += len(pair.completion)


def test_the_adapter_alone_gets_a_gradient(llama: LanguageModel) -> None:
    models = models_of(llama)
    states = taught(teacher_of(models, CONTEXT), CONTEXT)
    assert not any(one.requires_grad for one in states)
    HiddenState().hidden(learnt(models), states).sum().backward()
    moved = {
        name
        for name, p in models.student.network.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert moved
    assert all("lora_" in name for name in moved)


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_a_teacher_has_no_dropout_and_no_adapter_and_leaves_the_student_both(
    family: str, model_folders: dict[str, Path]
) -> None:
    models = models_of(load(str(model_folders[family]), dtype="float32"), dropout=0.5)
    online = teacher_of(models, CONTEXT)
    expected = taught(online, CONTEXT)
    network: Any = models.student.network
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    network.train()
    for mine, plain in zip(taught(online, CONTEXT), expected, strict=True):
        assert torch.equal(mine, plain)
    assert all(module.training for module in network.modules())
    dropped = [learnt(models)[-1] for _ in range(2)]
    assert not torch.allclose(*dropped)
    network.eval()
    assert not torch.allclose(learnt(models)[-1], expected[-1], atol=1e-2)


@pytest.mark.parametrize(
    "terms",
    [
        [{"name": "cross_entropy"}, {"name": "hidden_state", "weight": 10}],
        [{"name": "hidden_state", "weight": 10}],
    ],
    ids=["with cross-entropy", "alone"],
)
def test_training_on_hidden_states_brings_them_to_the_teachers(
    llama: LanguageModel, terms: list[dict[str, Any]]
) -> None:
    models = models_of(llama)
    online = teacher_of(models, CONTEXT)
    objective = Recipe.parse({"model": "m", "objective": terms}).objective
    rows = [
        TargetRow(p.row, p.student_prompt, p.completion, None, p.teacher_prompt)
        for p in pairs_of(llama)
    ]

    def apart() -> float:
        with torch.no_grad():
            loss: Tensor = HiddenState().hidden(learnt(models), taught(online, CONTEXT))
        return loss.mean().item()

    before = apart()
    report = train_on(models, rows, steps=40, objective=objective, online=online)
    assert apart() < 0.7 * before
    first = report.loss[0][1]
    if len(terms) == 1:
        assert first == pytest.approx(10 * before, rel=1e-3)
    else:
        assert first > 10 * before + 1  # the cross-entropy is in it


def test_a_hidden_state_loss_adds_to_stored_targets(llama: LanguageModel) -> None:
    """One row is one sequence, for the student and for its teacher: the parts are those of the same rows."""
    models = models_of(llama)
    pairs = pairs_of(llama)
    rows = [
        TargetRow(row.row, row.student_prompt, row.completion, row.targets, pair.teacher_prompt)
        for row, pair in zip(target_rows(models), pairs, strict=True)
    ]
    losses = {}
    for names in (["forward_kl"], ["hidden_state"], ["forward_kl", "hidden_state"]):
        settings = {"model": "m", "objective": [{"name": name} for name in names]}
        again = models_of(load(llama.name, dtype="float32"))
        report = train_on(
            again,
            rows,
            steps=1,
            objective=Recipe.parse(settings).objective,
            online=teacher_of(again, CONTEXT) if "hidden_state" in names else None,
        )
        losses[len(names), names[0]] = report.loss[0][1]
    alone = losses[1, "forward_kl"] + losses[1, "hidden_state"]
    assert losses[2, "forward_kl"] == pytest.approx(alone, rel=1e-4)
