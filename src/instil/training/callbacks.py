"""Callbacks during training: progress, curves, evaluation of the student, Ctrl-C."""

from __future__ import annotations

import importlib.util
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from torch.nn import Module
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from instil.errors import ConfigError
from instil.recipe.sections import Training
from instil.system import processes
from instil.system.progress import Advance, Bar
from instil.training.course import Course

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CURVES = "tensorboard"
"""Name of the folder for TensorBoard's files, inside the run's folder."""


class Show(TrainerCallback):
    """Advances a progress bar that also shows the loss."""

    def __init__(self, bar: Bar, advance: Advance) -> None:
        self.bar = bar
        self.advance = advance

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Shows that one more step is done."""
        self.advance(1, 0)
        losses = [entry["loss"] for entry in state.log_history[-2:] if "loss" in entry]
        self.bar.reach(state.global_step, f"loss {losses[-1]:.3f}" if losses else "")


class Observe(TrainerCallback):
    """Pauses training to evaluate the student, in evaluation mode.

    Args:
        student: The student.
        observe: Called with the number of steps, before the first step and whenever it is due.
        due: Whether it is due after a number of steps.
    """

    def __init__(
        self, student: Module, observe: Callable[[int], None], due: Callable[[int], bool]
    ) -> None:
        self.student, self.observe, self.due = student, observe, due

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Evaluates the student before its first step."""
        if state.global_step == 0:
            self._pause(0)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Evaluates the student if it is due."""
        if self.due(state.global_step):
            self._pause(state.global_step)

    def _pause(self, step: int) -> None:
        self.student.eval()
        self.observe(step)
        self.student.train()


def due_at(at_steps: int | Sequence[int], last: int) -> Callable[[int], bool]:
    """Whether a step is due: every N steps, or at the listed steps, and after the last step."""

    def due(step: int) -> bool:
        return step == last or (
            step % at_steps == 0 if isinstance(at_steps, int) else step in at_steps
        )

    return due


class End(TrainerCallback):
    """Ends the training when its course ends."""

    def __init__(self, course: Course) -> None:
        self.course = course

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Stops after the last step of the course."""
        if state.global_step >= self.course.end:
            control.should_training_stop = True


class Saved(TrainerCallback):
    """Tells that a checkpoint is complete on disk."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Calls the function."""
        self.tell()


def check_tensorboard(settings: Training) -> None:
    """Checks that TensorBoard is installed if training reports to it.

    Raises:
        ConfigError: it is not installed; the error says how to install it.
    """
    if settings.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "training.report_to: tensorboard is not installed",
            mend="pip install 'instil[tensorboard]', or leave report_to out",
        )


class Curves(TrainerCallback):
    """Writes what the Trainer logs as files for TensorBoard. Only the main process writes.

    Args:
        folder: Folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Opens a file and hides what an interrupted run logged after its last checkpoint."""
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Writes the values of a step."""
        if self._writer is not None and logs is not None:
            for name in ("loss", "grad_norm", "learning_rate"):
                if name in logs:
                    self._writer.add_scalar(f"train/{name}", logs[name], state.global_step)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


class Interrupt(TrainerCallback):
    """Turns Ctrl-C into a checkpoint after the current step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> Interrupt:
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Stops training with a checkpoint if Ctrl-C was pressed in any process."""
        self.pressed = any(processes.gather(self.pressed))  # all processes stop at the same step
        if self.pressed:
            control.should_save = True
            control.should_training_stop = True
