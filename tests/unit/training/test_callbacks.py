from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from instil import FewShot, Run, distill
from instil.errors import ConfigError
from instil.recipe.sections import Training


def run(model: Path, output: Path, **training: Any) -> Run:
    return distill(
        str(model),
        context=FewShot([{"input": "sun", "output": "s"}]),
        inputs=["one", "two", "three"],
        eval=[{"input": "four", "output": "f"}],
        output=output,
        quiet=True,
        prompt={"format": "plain"},
        teacher={"max_new_tokens": 4},
        dtype="float32",
        training={"max_steps": 3, "report_to": "tensorboard", **training},
    )


def test_the_loss_curve_is_in_the_run_folder(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = run(model_folders["llama"], tmp_path / "run")
    (file,) = (made.path / "tensorboard").iterdir()
    assert str(tmp_path).encode() not in file.read_bytes()
    events = EventAccumulator(str(file.parent))
    events.Reload()
    loss = [(one.step, one.value) for one in events.Scalars("train/loss")]
    assert [step for step, _ in loss] == [1, 2, 3]
    assert [value for _, value in loss] == pytest.approx(
        [value for _, value in made.results.training.loss]
    )


def test_without_tensorboard_nothing_is_begun(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "tensorboard" else real(name, *more),
    )
    with pytest.raises(ConfigError, match=r"not installed; mend: pip install 'instil\[tensorb"):
        run(model_folders["llama"], tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_another_place_is_no_setting() -> None:
    with pytest.raises(ValidationError, match="'none' or 'tensorboard'"):
        Training(report_to="wandb")
