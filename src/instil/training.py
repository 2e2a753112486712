"""Training the student: transformers.Trainer with our collator and our loss."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from typing_extensions import override

from instil import config
from instil.attention import reads_bounds
from instil.chunked import chunked_sum
from instil.collation import Collator, Lesson, Part, Rows
from instil.errors import NotFiniteLossError
from instil.forward import completion_logits, read
from instil.objective import Objective
from instil.online import OnlineTeacher
from instil.packing import keeps_apart
from instil.progress import Advance, Bar, Display

DEFAULT_STEPS = 60  # see benchmarks/training_defaults.py; more if one pass over the rows needs more
STATE = "trainer_state.json"
CHECKPOINTS = 4  # a run; each is as small as the adapter and its optimiser


@dataclass(frozen=True)
class TrainingReport:
    """What training did.

    Attributes:
        steps: Optimiser steps.
        loss: (step, mean loss a token since the point before).
    """

    steps: int
    loss: list[tuple[int, float]]


def train(
    student: PreTrainedModel | PeftModel,
    rows: Sequence[Lesson],
    *,
    objective: Objective,
    settings: config.Training,
    seed: int,
    pad_id: int,
    checkpoints: Path,
    resumable: bool = True,
    advance: Advance,
    display: Display,
    online: OnlineTeacher | None = None,
    observe: Callable[[int], None] | None = None,
    at_steps: int | None = None,
) -> TrainingReport:
    """Trains the student in place; goes on from the last checkpoint if there is one.

    Args:
        student: The model, with some of its weights or an adapter trainable.
        rows: What it is to learn.
        objective: The loss.
        settings: Optimisation.
        seed: Of the order of rows and of dropout.
        pad_id: Fills masked positions.
        checkpoints: Folder for checkpoints.
        resumable: Write checkpoints; they take an adapter's weights, not a base model's.
        advance: Told of progress.
        display: Shows progress.
        online: Runs beside the student, for losses of hidden states.
        observe: Called with the number of the step, the student in evaluation mode.
        at_steps: It is called each so many steps, and after the last one.

    Raises:
        NotFiniteLossError: the loss became NaN or infinite.
        KeyboardInterrupt: Ctrl-C; a checkpoint of the last step was written before.
    """
    steps = total_steps(settings, len(rows))
    arguments = _arguments(settings, steps, seed=seed, folder=checkpoints, resumable=resumable)
    last = _last_checkpoint(checkpoints)
    if last is not None:
        state = TrainerState.load_from_json(str(last / STATE))
        if (
            state.global_step >= steps
        ):  # nothing is left to do, and the Trainer would take one step more
            set_peft_model_state_dict(student, load_peft_weights(str(last), device="cpu"))
            return _report(state)
    with display.bar("training the student", steps) as bar, _Interrupt() as interrupt:
        trainer = DistillationTrainer(
            model=student,
            args=arguments,
            train_dataset=Rows(rows),
            data_collator=Collator(
                pad_id,
                packed=keeps_apart(student, rows[0].sequences[0], rows[-1].sequences[0]),
                masked=not reads_bounds(student),
                online=online,
            ),
            callbacks=[
                _Show(bar, advance),
                interrupt,
                *([_Observe(student, observe, at_steps)] if observe and at_steps else []),
            ],
            objective=objective,
            advance=advance,
            online=online,
        )
        trainer.remove_callback(_printer())
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if interrupt.pressed:
        raise KeyboardInterrupt
    student.eval()
    return _report(trainer.state)


def _arguments(
    settings: config.Training, steps: int, *, seed: int, folder: Path, resumable: bool
) -> TrainingArguments:
    """Our settings in the Trainer's words."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.grad_accumulation,
        learning_rate=settings.learning_rate,
        max_steps=steps,
        warmup_steps=math.ceil(settings.warmup_share * steps),
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        seed=seed,
        data_seed=seed,
        use_cpu=accelerator is None,
        dataloader_pin_memory=accelerator is not None,
        remove_unused_columns=False,
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,
        save_strategy="steps" if resumable else "no",
        save_steps=max(1, math.ceil(steps / CHECKPOINTS)),
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )
    # One process drives one device; several processes are accelerate's business.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _report(state: TrainerState) -> TrainingReport:
    log = [(int(e["step"]), float(e["loss"])) for e in state.log_history if "loss" in e]
    return TrainingReport(steps=state.global_step, loss=log)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: the Trainer writes its state last."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{STATE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def total_steps(settings: config.Training, rows: int) -> int:
    """Optimiser steps that the settings come to for that many rows."""
    if settings.max_steps is not None:
        return settings.max_steps
    a_pass = math.ceil(math.ceil(rows / settings.batch_size) / settings.grad_accumulation)
    if settings.epochs is None:
        return max(DEFAULT_STEPS, a_pass)
    return math.ceil(settings.epochs * a_pass)


class DistillationTrainer(Trainer):
    """A Trainer whose loss is an objective over completion tokens, averaged over the tokens of a whole step."""

    def __init__(
        self,
        *,
        objective: Objective,
        advance: Advance,
        online: OnlineTeacher | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.objective: Any = objective
        self.advance: Advance = advance
        self.online = online
        self.chunks = True
        # The Trainer then counts the labels of all micro-batches of a step and hands their number to the loss.
        self.model_accepts_loss_kwargs = True

    @override
    def training_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Forward and backward, part by part: what is kept for backward does not grow with the batch."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        *first, last = inputs["parts"]
        count = num_items_in_batch if num_items_in_batch is not None else len(inputs["labels"])
        for part in first:
            with self.accelerator.no_sync(model):
                total += self._step(model, part, count)
        return total + self._step(model, last, count)

    def _step(self, model: Any, part: Part, count: Tensor | int) -> Tensor:
        loss = self._summed(model, part) / count
        self.advance(0, part.batch.tokens)
        if self.args.average_tokens_across_devices and isinstance(count, Tensor):
            loss = loss * self.accelerator.num_processes  # the processes' gradients are averaged
        if not torch.isfinite(loss):
            raise NotFiniteLossError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}",
                allowed="a finite number",
                mend="lower --learning-rate, or use --dtype float32 or bfloat16 instead of float16",
            )
        self.accelerator.backward(loss)
        return loss.detach()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Runs an adapter's float32 weights in the base's bfloat16, in which its activations are anyway."""
        network = self.accelerator.unwrap_model(self.model)
        if not isinstance(network, PeftModel) or network.dtype != torch.bfloat16:
            yield
            return
        with (
            disable_input_dtype_casting(network),
            torch.autocast(network.device.type, dtype=torch.bfloat16),
        ):
            yield

    def _summed(self, model: Any, part: Part) -> Tensor:
        """The loss summed over all terms of a part."""
        batch, targets, objective = part.batch, part.targets, self.objective
        completion_N = batch.completion_N
        if not (objective.by_position and self.chunks):
            with self.computing():
                logits_NV = completion_logits(model, batch)
            device = logits_NV.device
            given = targets.to(device) if targets else None
            loss: Tensor = objective(logits_NV, completion_N.to(device), given).sum()
            return loss
        with self.computing():
            reading = read(model, batch, layers=objective.needs_hidden_states)
        if reading.head is None:  # capped or scaled logits: take them as the model gives them
            self.chunks = False
            return self._summed(model, part)
        device = reading.hidden_ND.device
        loss = torch.zeros((), device=device)
        if objective.needs_logits:
            completion_N, given = completion_N.to(device), targets.to(device) if targets else None
            loss = chunked_sum(
                reading.hidden_ND,
                reading.head,
                lambda logits_CV, start, end: objective(
                    logits_CV, completion_N[start:end], given and given.part(start, end)
                ),
            )
        if self.online is not None and part.teacher is not None:
            taught = self.online.hidden_states(part.teacher)
            loss = loss + objective.hidden(reading.layers, taught).sum()
        return loss


class _Show(TrainerCallback):
    def __init__(self, bar: Bar, advance: Advance) -> None:
        self.bar = bar
        self.advance = advance

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.advance(1, 0)
        losses = [entry["loss"] for entry in state.log_history[-2:] if "loss" in entry]
        self.bar.reach(state.global_step, f"loss {losses[-1]:.3f}" if losses else "")


class _Observe(TrainerCallback):
    def __init__(self, student: Any, observe: Callable[[int], None], at_steps: int) -> None:
        self.student = student
        self.observe = observe
        self.at_steps = at_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self.at_steps and state.global_step != state.max_steps:
            return
        self.student.eval()
        self.observe(state.global_step)
        self.student.train()


class _Interrupt(TrainerCallback):
    """Turns Ctrl-C into a checkpoint at the end of the running step; a second one ends at once."""

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> _Interrupt:
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
        if self.pressed:
            control.should_save = True
            control.should_training_stop = True


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
