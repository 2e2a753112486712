"""Nothing that instil computes mixes tensors of the processor and of an accelerator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.accelerator import DEVICE, Mixed, pretended, there
from tests.conftest import FAMILIES
from tests.small import form_of, models_of, nothing, pairs_of, target_rows, train_on

from instil.models.branches import Branches
from instil.models.generate import Decoding, generate
from instil.models.label_reader import read_labels
from instil.models.load import load


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_distillation_runs_on_the_accelerator(
    family: str, model_folders: dict[str, Path]
) -> None:
    ids = torch.tensor([[5, 9, 7, 3]])
    with torch.inference_mode():
        expected = load(str(model_folders[family]), dtype="float32").network(ids).logits
    with pretended():
        model = load(str(model_folders[family]), dtype="float32")
        assert model.device == DEVICE
        with torch.inference_mode():
            got = model.network(ids.to(DEVICE)).logits.cpu()
        torch.testing.assert_close(got, expected)  # only the place is pretended
        form, prompts = form_of(model), [pair.teacher_prompt for pair in pairs_of(model)]
        for temperature in (0.0, 1.0):
            decoding = Decoding(max_new_tokens=4, temperature=temperature, batch_size=3)
            generate(model, prompts, form.ending, decoding, advance=nothing)
        made = read_labels(
            model,
            prompts,
            Branches.of({(5, 6), (7,)}),
            batch_size=3,
            advance=nothing,
            make=lambda chunks: {"nodes": torch.cat(list(chunks)).unflatten(0, (-1, 4)).cpu()},
        )
        models = models_of(model, dropout=0.1)
        rows = target_rows(models)
        # Targets go to a store.
        assert not any(there(row.targets.ids_NK) for row in rows if row.targets)
        report = train_on(models, rows, steps=2, batch_size=3)
        assert models.student.device == DEVICE
    assert len(made["nodes"]) == len(prompts)
    assert report.steps == 2


def test_devices_that_mix_are_noticed() -> None:
    with pretended():
        here, away = torch.ones(3), torch.ones(3, device=DEVICE)
        assert there(away * 2)
        assert not there(away.cpu())
        assert (away[torch.tensor([0, 2])] + 1.0).device == DEVICE
        for mixture in (
            lambda: here + away,
            lambda: here[away.long()],
            lambda: away.numpy(),
            lambda: away.uniform_(generator=torch.Generator()),
        ):
            with pytest.raises(Mixed):
                mixture()
