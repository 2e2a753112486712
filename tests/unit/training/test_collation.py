"""Parts of a batch, and that training by parts is training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.small import models_of, pairs_of, target_rows, train_on, weights

from instil.models import forest
from instil.models.load import LanguageModel, load
from instil.models.packing import even_packs
from instil.targets.prediction import TargetRow, Targets
from instil.teacher.hidden_states import OnlineTeacher
from instil.training import collation, trainer
from instil.training.collation import Collator, Together


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("tokens", [1, 24])
def test_parts_of_few_tokens_train_to_the_weights_of_one_part(
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    accumulation: int,
) -> None:
    ends, counts = [], []
    real = trainer.DistillationTrainer._step

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        counts[-1] += 1
        return real(self, *args, **kwargs)

    monkeypatch.setattr(trainer.DistillationTrainer, "_step", counted)
    for most in (10**6, tokens):
        monkeypatch.setattr(collation, "PASS_TOKENS", most)
        counts.append(0)
        models = models_of(load(str(model_folders["llama"]), dtype="float32"))
        rows = target_rows(models)
        report = train_on(models, rows, steps=3, batch_size=3, grad_accumulation=accumulation)
        ends.append((weights(models), [loss for _, loss in report.loss]))
    assert counts[1] > counts[0]
    (one, losses), (many, others) = ends
    assert others == pytest.approx(losses, rel=1e-4)
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, atol=1e-5, rtol=1e-4)


def collated(
    rows: list[TargetRow], *, packed: bool, masked: bool, online: OnlineTeacher | None = None
) -> dict[str, Any]:
    """All rows as one batch."""
    together = Together.PACKED if packed else Together.PADDED
    collator = Collator(rows, 0, together=together, masked=masked, online=online)
    return collator(range(len(rows)))


def rows_of(model: LanguageModel) -> list[TargetRow]:
    """Rows whose targets tell which row they are of."""
    return [
        TargetRow(
            pair.row,
            pair.student_prompt,
            pair.completion,
            Targets.of(torch.full((len(pair.completion), 4), pair.row), top_k=1, temperature=1.0),
            pair.teacher_prompt,
        )
        for pair in pairs_of(model)
    ]


def test_each_part_has_the_targets_and_the_teachers_batch_of_its_own_rows(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collation, "PASS_TOKENS", 30)
    models, rows = models_of(llama), rows_of(llama)
    online = OnlineTeacher.of(
        models.teacher,
        [row.teacher_prompt or [] for row in rows],
        lambda: models.adapter(on=False),
    )
    made = collated(rows, packed=True, masked=False, online=online)
    learnt = [row.completion for row in rows]
    assert 1 < len(made["parts"]) < len(rows)
    assert len(made["labels"]) == sum(map(len, learnt))
    seen: list[int] = []
    for part in made["parts"]:
        assert torch.equal(part.batch.completion_N, part.teacher[0].completion_N)
        assert len(part.targets.ids_NK) == len(part.batch.completion_N)
        # The number of the row is its logits, and their log-sum-exp is log 4 more.
        seen += (part.targets.logsumexp_N - torch.tensor(4.0).log()).round().int().tolist()
    together = torch.cat([part.batch.completion_N for part in made["parts"]])
    order = list(dict.fromkeys(seen))
    assert sorted(order) == list(range(len(rows)))
    assert seen == [n for n in order for _ in learnt[n]]
    assert together.tolist() == [token for n in order for token in learnt[n]]


@pytest.mark.parametrize(("packed", "masked"), [(False, False), (True, True)])
def test_rows_that_need_a_mask_or_padding_are_one_part(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, packed: bool, masked: bool
) -> None:
    monkeypatch.setattr(collation, "PASS_TOKENS", 1)
    (part,) = collated(rows_of(llama), packed=packed, masked=masked)["parts"]
    assert part.batch.bounds is None
    assert (len(part.batch.input_ids_BL) == 1) == packed
    assert part.teacher is None


def test_rows_longer_than_a_pack_under_a_mask_may_be_are_padded(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collation, "LONGEST_PACK", 20)
    rows = rows_of(llama)
    (part,) = collated(rows, packed=True, masked=True)["parts"]
    assert len(part.batch.input_ids_BL) == len(rows)


def test_training_is_the_same_where_shared_beginnings_are_there_once(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, tokens = [], []
    real = collation.pack

    def seen(*args: Any, **kwargs: Any) -> Any:
        made = real(*args, **kwargs)
        tokens.append(made.tokens)
        return made

    monkeypatch.setattr(collation, "pack", seen)
    counts = []
    for least in (3, 100):
        monkeypatch.setattr(forest, "LEAST_SHARED", least)
        tokens.clear()
        models = models_of(load(str(model_folders["llama"]), dtype="float32"))
        train_on(models, target_rows(models), steps=3, batch_size=3)
        ends.append(weights(models))
        counts.append(sum(tokens))
    assert counts[0] < counts[1]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-5, rtol=1e-4)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(20, 80))
def test_even_packs_hold_every_row_once_and_no_more_than_fits(
    lengths: list[int], most: int
) -> None:
    groups = even_packs(lengths, most=most)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    for group in groups:
        assert sum(lengths[number] for number in group) <= max(most, *lengths)


def test_a_long_row_does_not_tear_short_ones_apart() -> None:
    assert even_packs([600, *[10] * 7], most=512) == [[0], [1, 2, 3, 4, 5, 6, 7]]


def test_even_packs_are_of_like_size() -> None:
    groups = even_packs([300, 150, 60, 90, 200], most=512)
    assert [sorted(group) for group in groups] == [[0, 3], [1, 2, 4]]
