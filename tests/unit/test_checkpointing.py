"""Gradient checkpointing: activations are computed again, and nothing else changes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import CONTEXT, QUIET, judged_of, nothing, target_rows, weights

from instil import config, training
from instil.model import load
from instil.objective import ForwardKL


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_weights_are_those_without_it(
    model_folders: dict[str, Path], family: str, dtype: str
) -> None:
    ends, passes = [], []
    for checkpointing in (False, True):
        judged = judged_of(load(str(model_folders[family]), dtype=dtype), CONTEXT, dropout=0.1)
        rows = target_rows(judged)
        network: Any = judged.student.network
        torch.manual_seed(0)
        calls: list[int] = []
        down = [m for n, m in network.named_modules() if n.endswith("q_proj")][-1]
        down.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(1))
        with tempfile.TemporaryDirectory() as folder:
            training.train(
                network,
                rows,
                objective=ForwardKL(),
                settings=config.Training(
                    max_steps=3,
                    batch_size=5,
                    learning_rate=1e-2,
                    gradient_checkpointing=checkpointing,
                ),
                seed=0,
                pad_id=judged.student.pad_id,
                checkpoints=Path(folder),
                advance=nothing,
                display=QUIET,
            )
        ends.append(weights(judged))
        passes.append(len(calls))
    plain, again = ends
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5)
    assert passes[1] > passes[0]
