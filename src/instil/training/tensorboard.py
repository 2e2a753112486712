"""The loss curve as files for TensorBoard, which is not installed with instil."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from instil.errors import ConfigError
from instil.recipe.sections import Training

FOLDER = "tensorboard"  # within a run's


def check(settings: Training) -> None:
    """Refuses a report to a package that is not there.

    Raises:
        ConfigError: says how to install it.
    """
    if settings.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "training.report_to: tensorboard is not installed",
            mend="pip install 'instil[tensorboard]', or leave report_to out",
        )


class Curves(TrainerCallback):
    """Writes what the Trainer logs; of several processes, the main one.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins a file; what an interrupted run logged after its last checkpoint is not shown."""
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the numbers of a step."""
        if self._writer is not None and logs is not None:
            for name in ("loss", "grad_norm", "learning_rate"):
                if name in logs:
                    self._writer.add_scalar(f"train/{name}", logs[name], state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()
