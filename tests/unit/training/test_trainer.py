"""Training: losses in chunks and whole, and a student that is looked at in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.small import models_of, pairs_of, target_rows, train_on, weights

from instil.losses import ForwardKL
from instil.models import chunked
from instil.models.load import load
from instil.models.roles import Models
from instil.recipe.recipe import Recipe
from instil.targets.prediction import TargetRow
from instil.teacher.hidden_states import OnlineTeacher
from instil.training import trainer


class Whole(ForwardKL):
    """A loss that wants all logits at once."""

    by_position: ClassVar[bool] = False


def cap(network: Any, most: float = 4.0) -> None:
    """As some models do, after their output layer."""
    real = network.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = real(*args, **kwargs)
        output.logits = most * torch.tanh(output.logits / most)
        return output

    network.forward = capped


def fresh(model_folders: dict[str, Path], *, capped: bool = False, **settings: Any) -> Models:
    model = load(str(model_folders["llama"]), dtype="float32")
    if capped:
        cap(model.network)
    return models_of(model, **settings)


@pytest.mark.parametrize("capped", [False, True], ids=["plain", "capped"])
def test_a_loss_in_chunks_trains_what_the_whole_loss_trains(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capped: bool
) -> None:
    """Logits that the model caps are taken as it gives them, in one piece."""
    monkeypatch.setattr(chunked, "MOST_LOGITS", 1500)
    calls: list[int] = []
    real = trainer.chunked_sum

    def counted(*args: Any) -> Any:
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(trainer, "chunked_sum", counted)
    ends = []
    for objective in (ForwardKL(), Whole()):
        models = fresh(model_folders, capped=capped)
        rows = target_rows(models)
        report = train_on(models, rows, steps=4, batch_size=3, objective=objective)
        ends.append((weights(models), [loss for _, loss in report.loss]))
        assert len(calls) == (0 if capped else 4)
    (fused, losses), (whole, others) = ends
    assert losses == pytest.approx(others, rel=1e-4)
    for name, value in whole.items():
        torch.testing.assert_close(fused[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("steps", "at_steps", "expected"),
    [
        (5, 2, [0, 2, 4, 5]),
        (4, 2, [0, 2, 4]),
        (2, 9, [0, 2]),
        (3, 1, [0, 1, 2, 3]),
        (5, (1, 3), [0, 1, 3, 5]),
        (4, (4, 2), [0, 2, 4]),
    ],
)
def test_a_student_is_observed_first_when_it_is_asked_for_and_last(
    model_folders: dict[str, Path],
    steps: int,
    at_steps: int | tuple[int, ...],
    expected: list[int],
) -> None:
    models, seen = fresh(model_folders), []

    def observe(step: int) -> None:
        network: Any = models.student.network
        seen.append((step, any(module.training for module in network.modules())))

    train_on(models, target_rows(models), steps=steps, observe=observe, at_steps=at_steps)
    assert seen == [(step, False) for step in expected]


def test_being_observed_changes_nothing_that_is_learnt(model_folders: dict[str, Path]) -> None:
    """Dropout is on again afterwards, and draws what it would have drawn."""
    ends = []
    for more in ({}, {"observe": lambda step: None, "at_steps": 1}):
        models = fresh(model_folders, dropout=0.3)
        torch.manual_seed(0)
        train_on(models, target_rows(models), steps=4, batch_size=2, **more)
        ends.append(weights(models))
    plain, observed = ends
    assert all(torch.equal(observed[name], value) for name, value in plain.items())


@pytest.mark.parametrize("names", [["cross_entropy", "hidden_state"], ["hidden_state"]])
def test_a_model_that_caps_its_logits_learns_hidden_states_too(
    model_folders: dict[str, Path], names: list[str]
) -> None:
    settings = {"model": "m", "objective": [{"name": name} for name in names]}
    losses = []
    for capped in (False, True):
        models = fresh(model_folders)
        pairs = pairs_of(models.teacher)
        online = OnlineTeacher.of(
            models.teacher,
            [pair.teacher_prompt for pair in pairs],
            lambda one=models: one.adapter(on=False),
        )
        if capped:
            cap(models.teacher.network.get_base_model(), 20.0)
        rows = [
            TargetRow(p.row, p.student_prompt, p.completion, None, p.teacher_prompt) for p in pairs
        ]
        objective = Recipe.parse(settings).objective
        report = train_on(models, rows, steps=2, objective=objective, online=online)
        losses.append([loss for _, loss in report.loss])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_each_checkpoint_is_told_when_it_is_complete(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    models, seen = fresh(model_folders), []

    def saved() -> None:
        newest = max(tmp_path.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime_ns)
        assert (newest / trainer.STATE).is_file()
        seen.append(newest.name)

    train_on(models, target_rows(models), steps=6, folder=tmp_path, saved=saved)
    assert seen == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
