"""What happens beside training, step by step: progress is shown, the student is judged, Ctrl-C is heard."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from instil.system import processes
from instil.system.progress import Advance, Bar


class Show(TrainerCallback):
    """Moves a bar, with the loss beside it."""

    def __init__(self, bar: Bar, advance: Advance) -> None:
        self.bar = bar
        self.advance = advance

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Shows one step more."""
        self.advance(1, 0)
        losses = [entry["loss"] for entry in state.log_history[-2:] if "loss" in entry]
        self.bar.reach(state.global_step, f"loss {losses[-1]:.3f}" if losses else "")


class Observe(TrainerCallback):
    """Stops training for a look at the student, in evaluation mode."""

    def __init__(
        self, student: Any, observe: Callable[[int], None], at_steps: int | Sequence[int]
    ) -> None:
        self.student = student
        self.observe = observe
        self.at_steps = at_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks at a student that has learnt nothing."""
        if state.global_step == 0:
            self._look(0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks each so many steps or at those that are named, and after the last one."""
        step, at_steps = state.global_step, self.at_steps
        due = step % at_steps == 0 if isinstance(at_steps, int) else step in at_steps
        if due or step == state.max_steps:
            self._look(step)

    def _look(self, step: int) -> None:
        self.student.eval()
        self.observe(step)
        self.student.train()


class Interrupt(TrainerCallback):
    """Turns Ctrl-C into a checkpoint at the end of the running step; a second one ends at once."""

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
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends training with a checkpoint if Ctrl-C was pressed, in whichever process."""
        self.pressed = any(processes.gather(self.pressed))  # all stop after the same step
        if self.pressed:
            control.should_save = True
            control.should_training_stop = True
