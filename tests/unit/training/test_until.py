"""A training that ends when the loss on held-out lessons says so."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import QUIET, models_of, nothing, target_rows, weights

from instil.losses import ForwardKL
from instil.models.load import load
from instil.models.roles import Models
from instil.pipeline.checkpoints import Watch, held_out
from instil.recipe import sections
from instil.results.training import HeldOutLoss
from instil.training import course, trainer
from instil.training.keeping import Kept

NUMBERS = (1, 3)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks after every second step, so that a training may be short."""
    monkeypatch.setattr(course, "EVERY", 2)


def fresh(model_folders: dict[str, Path]) -> Models:
    return models_of(load(str(model_folders["llama"]), dtype="float32"))


def train(
    models: Models, folder: Path, *, kept: Kept | None = None, saved: Any = None, **settings: Any
) -> tuple[trainer.TrainingReport, list[HeldOutLoss]]:
    network: Any = models.student.network
    watch = Watch(network, HeldOutLoss, folder)
    report = trainer.train(
        network,
        target_rows(models),
        objective=ForwardKL(),
        settings=sections.Training.model_validate(
            {"until": "plateau", "max_steps": 40, "batch_size": 2, "learning_rate": 1e-2} | settings
        ),
        seed=0,
        pad_id=models.student.pad_id,
        checkpoints=folder / "checkpoints",
        advance=nothing,
        display=QUIET,
        kept=kept,
        held_out=held_out(watch, NUMBERS),
        saved=saved,
    )
    return report, watch.keep_best()


def test_the_loss_on_rows_that_are_not_learnt_is_that_of_the_student_alone(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    models = fresh(model_folders)
    objective, rows, total, count = ForwardKL(), target_rows(models), 0.0, 0
    network: Any = models.student.network
    with torch.no_grad():
        for number in NUMBERS:
            row = rows[number]
            ids, length = torch.tensor([row.student_prompt + row.completion]), len(row.completion)
            logits = network(input_ids=ids).logits[0, -length - 1 : -1]
            loss = objective(logits, torch.tensor(row.completion), row.targets)
            total, count = total + float(loss.sum()), count + length
    _, seen = train(models, tmp_path, max_steps=4)
    assert seen[0].loss == pytest.approx(total / count, rel=1e-4)
    assert [one.step for one in seen] == [0, 2, 4]


def test_the_weights_are_those_of_the_step_with_the_lowest_loss(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    models = fresh(model_folders)
    report, seen = train(models, tmp_path, learning_rate=5e-2)
    assert report.steps == seen[-1].step <= 40
    assert report.ended in ("plateau", "max_steps")
    (kept,) = [one for one in seen if one.kept]
    assert kept.loss == min(one.loss for one in seen[1:])
    again, measured = train(models, tmp_path / "again", max_steps=1, learning_rate=1e-9)
    assert again.steps == 1
    assert measured[0].loss == pytest.approx(kept.loss, rel=1e-5)


def test_held_out_lessons_teach_nothing(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another target for one of them changes the loss that is measured, and no weight."""
    ends, first = [], []
    for swapped in (False, True):
        models = fresh(model_folders)
        rows = target_rows(models)
        if swapped:
            rows[1], rows[3] = rows[3], rows[1]
            monkeypatch.setattr(f"{__name__}.target_rows", lambda models, rows=rows: rows)
        torch.manual_seed(0)
        _, seen = train(models, tmp_path / str(swapped), max_steps=4, schedule="constant")
        ends.append(weights(models))
        first.append(seen[0].loss)
    assert all(torch.equal(ends[1][name], value) for name, value in ends[0].items())
    assert first[0] == pytest.approx(first[1], rel=1e-5)


class StoppedError(Exception):
    """Stands for a process that is killed."""


@pytest.mark.parametrize("until", ["plateau", {"kl_share": 0.6}], ids=str)
def test_a_training_that_is_interrupted_ends_where_it_would_have_ended(
    model_folders: dict[str, Path], tmp_path: Path, until: Any
) -> None:
    models = fresh(model_folders)
    torch.manual_seed(0)
    report, seen = train(models, tmp_path / "whole", until=until)
    expected = weights(models)
    assert report.steps < 40
    for stops in (1, 2, 4):
        folder = tmp_path / f"stopped {stops}"
        left = [None] * stops

        def saved(left: list[None] = left) -> None:
            left.pop()
            if not left:
                raise StoppedError

        torch.manual_seed(0)
        with suppress(StoppedError):
            train(fresh(model_folders), folder, until=until, saved=saved)
        resumed = fresh(model_folders)
        torch.manual_seed(0)
        found, looked = train(resumed, folder, until=until)
        assert (found.steps, found.ended) == (report.steps, report.ended)
        assert [(one.step, one.kept) for one in looked] == [(one.step, one.kept) for one in seen]
        assert [one.loss for one in looked] == pytest.approx([one.loss for one in seen])
        for name, value in weights(resumed).items():
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def test_kept_texts_are_not_part_of_the_held_out_loss(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    losses = []
    for many in (False, True):
        models = fresh(model_folders)
        kept = Kept(target_rows(models), per_batch=2, weight=4.0, seed=0) if many else None
        _, seen = train(models, tmp_path / str(many), kept=kept, max_steps=2)
        losses.append(seen[0].loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
