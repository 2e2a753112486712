"""Gradient checkpointing: activations are computed again, and nothing else changes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import QUIET, models_of, nothing, target_rows, weights

from instil.losses import ForwardKL
from instil.models.load import load
from instil.recipe import sections
from instil.training import trainer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_weights_are_those_without_it(
    model_folders: dict[str, Path], family: str, dtype: str
) -> None:
    ends, passes = [], []
    for checkpointing in (False, True):
        models = models_of(load(str(model_folders[family]), dtype=dtype), dropout=0.1)
        rows = target_rows(models)
        network: Any = models.student.network
        torch.manual_seed(0)
        calls: list[int] = []
        down = [m for n, m in network.named_modules() if n.endswith("q_proj")][-1]
        down.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(1))
        with tempfile.TemporaryDirectory() as folder:
            trainer.train(
                network,
                rows,
                objective=ForwardKL(),
                settings=sections.Training(
                    max_steps=3,
                    batch_size=5,
                    learning_rate=1e-2,
                    gradient_checkpointing=checkpointing,
                ),
                seed=0,
                pad_id=models.student.pad_id,
                checkpoints=Path(folder),
                advance=nothing,
                display=QUIET,
            )
        ends.append(weights(models))
        passes.append(len(calls))
    plain, again = ends
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5)
    assert passes[1] > passes[0]
