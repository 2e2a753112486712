"""Kept texts in the batches of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import models_of, plain_logits, target_rows, train_on, weights

from instil.losses import ForwardKL
from instil.models.load import load
from instil.models.roles import Models
from instil.prompts.context import NO_CONTEXT
from instil.recipe import sections
from instil.system import processes
from instil.targets.prediction import TargetRow, Targets
from instil.training import trainer
from instil.training.keeping import KeepingCollator, Kept


@pytest.fixture
def models(model_folders: dict[str, Path]) -> Models:
    return models_of(load(str(model_folders["llama"]), dtype="float32"))


def texts(models: Models) -> list[TargetRow]:
    """Texts whose targets are the base's own predictions without a context."""
    return target_rows(models, context=NO_CONTEXT)


def collator(models: Models, kept: Kept) -> KeepingCollator:
    settings = sections.Training(batch_size=2)
    _, made = trainer._collators(
        models.student.network,  # type: ignore[arg-type]
        target_rows(models),
        kept,
        settings,
        pad_id=models.student.pad_id,
        online=None,
    )
    return made


def of_texts(batch: dict[str, Any]) -> list[Any]:
    return [part for part in batch["parts"] if part.kept is not None]


def kept_tokens(part: Any) -> int:
    return len(part.batch.completion_N) - part.kept.start


def kept_sequences(batch: dict[str, Any]) -> list[Any]:
    """The texts of a batch: what comes after the tokens of its lessons."""
    found = []
    for part in of_texts(batch):
        seen = 0
        for pair in part.sequences:
            if seen >= part.kept.start:
                found.append(pair)
            seen += len(pair[1])
    return found


def test_texts_are_added_and_their_mean_has_the_weight(models: Models) -> None:
    rows = target_rows(models)
    collate = collator(models, Kept(rows, per_batch=3, weight=0.5, seed=0))
    batch = collate([0, 1])
    assert len(batch["labels"]) == sum(len(row.completion) for row in rows[:2])
    parts = of_texts(batch)
    assert len(kept_sequences(batch)) == 3
    total = sum(part.kept.weight * kept_tokens(part) for part in parts)
    assert total == pytest.approx(0.5)


def test_the_draw_depends_on_the_seed_and_the_batch_alone(models: Models) -> None:
    rows = target_rows(models)

    def drawn(seed: int, numbers: list[int]) -> list[Any]:
        collate = collator(models, Kept(rows, per_batch=2, weight=1.0, seed=seed))
        return kept_sequences(collate(numbers))

    assert drawn(0, [0, 1]) == drawn(0, [0, 1])
    others = [drawn(seed, [0, 1]) for seed in range(1, 6)]
    assert any(other != drawn(0, [0, 1]) for other in others)
    assert any(drawn(0, [n, n + 1]) != drawn(0, [0, 1]) for n in range(1, 4))


def test_processes_share_the_texts_of_a_batch(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    collate = collator(models, Kept(target_rows(models), per_batch=3, weight=1.0, seed=0))
    whole = kept_sequences(collate([0, 1, 2, 3]))
    shared, weight = [], 0.0
    monkeypatch.setattr(processes, "count", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        batch = collate([0, 1, 2, 3])
        shared += kept_sequences(batch)
        weight += sum(part.kept.weight * kept_tokens(part) for part in of_texts(batch))
    assert sorted(map(str, shared)) == sorted(map(str, whole))
    assert weight == pytest.approx(1.0)


def test_the_gradient_is_that_of_both_mean_losses(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of plain gradient descent over two micro-batches, against losses by hand."""
    models = models_of(load(str(model_folders["llama"]), dtype="float32"))
    rows, kept = target_rows(models), texts(models)[:2]
    grads: dict[str, torch.Tensor] = {}
    real = trainer.DistillationTrainer.training_step

    def watched(self: Any, model: Any, *args: Any, **more: Any) -> Any:
        loss = real(self, model, *args, **more)
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                grads[name] = weight.grad.clone()
        return loss

    monkeypatch.setattr(trainer.DistillationTrainer, "training_step", watched)
    beside = Kept(kept, per_batch=2, weight=0.7, seed=0)
    settings = {"steps": 1, "batch_size": 2, "grad_accumulation": 2}
    before = weights(models)
    train_on(models, rows[:4], kept=beside, **settings)
    network: Any = models.student.network
    for name, value in before.items():
        dict(network.named_parameters())[name].data.copy_(value)
    network.zero_grad()
    network.eval()

    def summed(row: TargetRow) -> torch.Tensor:
        ids = torch.tensor([row.student_prompt + row.completion])
        logits = network(input_ids=ids).logits[0, len(row.student_prompt) - 1 : -1]
        targets = Targets.cat([row.targets])  # tensors of inference mode cannot be used here
        return ForwardKL()(logits, torch.tensor(row.completion), targets).sum()

    def mean(of: list[TargetRow]) -> torch.Tensor:
        return sum(map(summed, of)) / sum(len(row.completion) for row in of)

    (mean(rows[:4]) + 0.7 * mean(kept)).backward()
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(grads[name], weight.grad, atol=1e-5, rtol=1e-3)


def test_a_student_with_kept_texts_stays_nearer_to_its_base(model_folders: dict[str, Path]) -> None:
    apart = []
    for weight in (None, 5.0):
        models = models_of(load(str(model_folders["llama"]), dtype="float32"))
        kept = texts(models)
        beside = None if weight is None else Kept(kept, per_batch=5, weight=weight, seed=0)
        train_on(models, target_rows(models), steps=12, kept=beside)
        moved = 0.0
        for row in kept:
            with torch.no_grad():
                q = plain_logits(models.student.network, row.student_prompt, row.completion)
                with models.adapter(on=False):
                    p = plain_logits(models.student.network, row.student_prompt, row.completion)
            moved += float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum())
        apart.append(moved)
    assert apart[1] < 0.5 * apart[0]
