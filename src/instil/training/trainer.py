"""Training the student: transformers.Trainer with our collator and our loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from typing_extensions import override

from instil.errors import NotFiniteLossError
from instil.losses import Objective
from instil.losses.base import Loss
from instil.losses.forward_kl import ForwardKL
from instil.losses.label_kl import LabelKL
from instil.models.chunked import MOST_LOGITS, chunked, chunked_sum
from instil.models.forward import completion_logits, output_embeddings, read
from instil.recipe import sections
from instil.results.training import Ended
from instil.system import processes
from instil.system.progress import Advance, Bar, Display
from instil.training.branching import branch_collator
from instil.training.callbacks import Curves, End, Interrupt, Observe, Saved, Show, due_at
from instil.training.collation import Collator, HiddenStates, Lesson, Numbers, Part, proven_collator
from instil.training.course import Course
from instil.training.keeping import KeepingCollator, Kept
from instil.training.launch import check

STATE = "trainer_state.json"
KEEPING = ForwardKL()  # the loss of kept texts
CHECKPOINTS = 4  # in the fixed number of steps; each holds only the adapter and its optimiser state


@dataclass(frozen=True)
class TrainingReport:
    """The result of training.

    Attributes:
        steps: Number of optimiser steps.
        loss: (step, mean loss per token since the previous entry).
        ended: Why it ended; None if the number of steps was fixed.
    """

    steps: int
    loss: list[tuple[int, float]]
    ended: Ended | None = None


@dataclass(frozen=True)
class HeldOut:
    """Lessons that are not trained on: the loss on them tells when training ends.

    Attributes:
        numbers: Their numbers among all lessons.
        losses: Mean loss per term after a number of steps, measured before an interruption.
        tell: Called with the number of steps and the loss, after each measurement.
    """

    numbers: Collection[int]
    losses: Mapping[int, float]
    tell: Callable[[int, float], None]


def train(
    student: PreTrainedModel | PeftModel,
    rows: Sequence[Lesson],
    *,
    objective: Objective,
    settings: sections.Training,
    seed: int,
    pad_id: int,
    checkpoints: Path,
    resumable: bool = True,
    advance: Advance,
    display: Display,
    online: HiddenStates | None = None,
    kept: Kept | None = None,
    observe: Callable[[int], None] | None = None,
    at_steps: int | Sequence[int] | None = None,
    held_out: HeldOut | None = None,
    curves: Path | None = None,
    saved: Callable[[], None] | None = None,
) -> TrainingReport:
    """Trains the student in place; resumes from the last checkpoint if there is one.

    Several processes of a launch share each batch and average their gradients, so all end with the
    same weights.

    Args:
        student: The model, with some of its weights or an adapter trainable.
        rows: The lessons, also those that are held out.
        objective: The loss.
        settings: Optimisation.
        seed: Seed of the order of rows and of dropout.
        pad_id: Fills masked positions.
        checkpoints: Folder for checkpoints.
        resumable: Write checkpoints. They hold an adapter's weights, but not a base model's.
        advance: Called to report progress.
        display: Shows progress.
        online: A teacher that runs during training, for losses of hidden states.
        kept: Texts on which the student stays as its base is; None: there are none.
        observe: Called with the number of the step, with the student in evaluation mode.
        at_steps: When to call `observe`: every N steps, or at the listed steps. It is also called
            before the first step and after the last step.
        held_out: The lessons that are measured for `training.until`; None: the number of steps is
            fixed.
        curves: Folder for TensorBoard's files, if `settings` request them.
        saved: Called after each checkpoint is written.

    Raises:
        ConfigError: a batch has fewer rows than there are processes.
        LaunchError: FSDP does not support the settings.
        TuningError: the student cannot read several lessons at once.
        NotFiniteLossError: the loss became NaN or infinite.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint of the last step was written before.
    """
    check(settings, objective, at_steps if observe else None)
    apart = held_out.numbers if held_out else ()
    numbers = [number for number in range(len(rows)) if number not in apart]
    course = Course.of(settings, len(numbers), watched=held_out is not None)
    arguments = _arguments(settings, course, seed=seed, folder=checkpoints, resumable=resumable)
    last = _last_checkpoint(checkpoints)
    if last is not None:
        state = TrainerState.load_from_json(str(last / STATE))
        known = held_out.losses if held_out else {}
        course.losses = {step: loss for step, loss in known.items() if step <= state.global_step}
        # If no step is left, the Trainer would still take one more step.
        if state.global_step >= course.end:
            set_peft_model_state_dict(student, load_peft_weights(str(last), device="cpu"))
            return _report(state, course)
    with display.bar("training the student", course.end) as bar, Interrupt() as interrupt:
        lessons, collator = _collators(student, rows, kept, settings, pad_id=pad_id, online=online)
        trainer = DistillationTrainer(
            model=student,
            args=arguments,
            train_dataset=Numbers(numbers),
            data_collator=collator,
            callbacks=[
                Show(bar, advance),
                interrupt,
                *(
                    [Observe(student, observe, due_at(at_steps, course.most))]
                    if observe and at_steps
                    else []
                ),
                *([Saved(saved)] if saved else []),
                *([Curves(curves)] if curves and settings.report_to == "tensorboard" else []),
            ],
            objective=objective,
            course=course,
            advance=advance,
            online=online,
        )
        trainer.remove_callback(PrinterCallback)
        if held_out is not None:
            look = partial(trainer.look, lessons, held_out, bar)
            trainer.add_callback(Observe(student, look, course.measures))
            trainer.add_callback(End(course))
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if interrupt.pressed:
        raise KeyboardInterrupt
    student.eval()
    return _report(trainer.state, course)


def _collators(
    student: PreTrainedModel | PeftModel,
    rows: Sequence[Lesson],
    kept: Kept | None,
    settings: sections.Training,
    *,
    pad_id: int,
    online: HiddenStates | None,
) -> tuple[Collator, Callable[[Sequence[int]], dict[str, Any]]]:
    """Makes batches of lessons, alone and with kept texts, as fast as the student reads them right."""
    texts = (
        [] if kept is None else [kept.rows[n] for n in range(min(kept.per_batch, len(kept.rows)))]
    )
    proven = partial(proven_collator, student, pad_id=pad_id)
    lessons: Collator | None = branch_collator(student, rows, pad_id=pad_id)
    alone = None
    if lessons is None:
        lessons = proven(rows, batch_size=settings.batch_size, online=online, texts=texts)
    elif kept is not None:
        alone = proven(kept.rows, batch_size=kept.per_batch, online=None)
    return lessons, lessons if kept is None else KeepingCollator(lessons, alone, kept)


def _arguments(
    settings: sections.Training, course: Course, *, seed: int, folder: Path, resumable: bool
) -> TrainingArguments:
    """Our settings as the Trainer's arguments."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    recompute = {"use_reentrant": False} if settings.gradient_checkpointing else None
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.grad_accumulation,
        learning_rate=settings.learning_rate,
        max_steps=course.most,
        weight_decay=settings.weight_decay,
        seed=seed,
        data_seed=seed,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs=recompute,
        # Processes run different numbers of forward passes, so they may exchange only gradients.
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        accelerator_config={"even_batches": False},  # use each row of a short last batch once
        use_cpu=accelerator is None,
        dataloader_pin_memory=accelerator is not None,
        remove_unused_columns=False,
        logging_steps=max(1, course.fixed // 50),
        logging_nan_inf_filter=False,
        save_strategy="steps" if resumable else "no",
        save_steps=max(1, math.ceil(course.fixed / CHECKPOINTS)),
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )
    # One process uses one device. accelerate handles several processes.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _report(state: TrainerState, course: Course) -> TrainingReport:
    log = [(int(e["step"]), float(e["loss"])) for e in state.log_history if "loss" in e]
    return TrainingReport(steps=state.global_step, loss=log, ended=course.ended)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. The Trainer writes its state file last."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{STATE}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class DistillationTrainer(Trainer):
    """A Trainer whose loss is an objective, averaged over the completion tokens of a full step."""

    def __init__(
        self,
        *,
        objective: Objective,
        course: Course,
        advance: Advance,
        online: HiddenStates | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.objective: Loss = objective
        self.course = course
        self.advance: Advance = advance
        self.online = online
        # Under FSDP the full output layer exists only during the model's forward pass.
        self.chunks = not self.is_fsdp_enabled
        # The Trainer then counts the labels of all micro-batches of a step, and passes their number
        # to the loss.
        self.model_accepts_loss_kwargs = True

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        """Gives every process the same batches; the collator takes the process's share of each."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        if processes.count() > 1:
            sampler: Any = loader.batch_sampler  # accelerate's
            sampler.num_processes = 1
            sampler.process_index = 0
        return loader

    @override
    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LRScheduler:
        """Makes our own schedule; see `training.course`."""
        if self.lr_scheduler is None:
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(chosen, self.course.share)
        return self.lr_scheduler

    def look(self, lessons: Collator, held_out: HeldOut, bar: Bar, step: int) -> None:
        """Measures the loss on held-out lessons, which the course of the training depends on.

        All processes must call this.

        Args:
            lessons: Makes batches of lessons.
            held_out: The lessons.
            bar: Shows the loss.
            step: Number of steps.
        """
        loss = self._mean_loss(lessons, sorted(held_out.numbers))
        self.course.losses[step] = loss
        held_out.tell(step, loss)
        bar.reach(step, f"held-out loss {loss:.3f}", total=self.course.end)

    @torch.no_grad()
    def _mean_loss(self, lessons: Collator, numbers: Sequence[int]) -> float:
        """The mean loss per term of some lessons, over all processes."""
        size, total, terms = self.args.per_device_train_batch_size, 0.0, 0
        for start in range(0, len(numbers), size):
            batch = lessons(numbers[start : start + size])
            for part in batch["parts"]:
                total += float(self._weighted(cast(Module, self.model), part, batch["weight"]))
                self.advance(0, part.batch.tokens)
            terms += len(batch["labels"])
        totals, counts = zip(*processes.gather((total, terms)), strict=True)
        return float(sum(totals) / sum(counts))

    @override
    def training_step(
        self,
        model: Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Forward and backward pass, part by part, so that memory does not grow with the batch."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        *first, last = inputs["parts"]
        count = num_items_in_batch if num_items_in_batch is not None else len(inputs["labels"])
        for part in first:
            with self.accelerator.no_sync(model):
                total += self._step(model, part, count, inputs["weight"])
        return total + self._step(model, last, count, inputs["weight"])

    def _step(self, model: Module, part: Part, count: Tensor | int, weight: float) -> Tensor:
        loss = self._weighted(model, part, weight / count)
        self.advance(0, part.batch.tokens)
        if self.args.average_tokens_across_devices and isinstance(count, Tensor):
            loss = loss * self.accelerator.num_processes  # the processes' gradients are averaged
        if not torch.isfinite(loss):
            raise NotFiniteLossError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}",
                allowed="a finite number",
                mend="lower the learning rate, or use dtype float32 or bfloat16 instead of float16",
            )
        if isinstance(model, DistributedDataParallel):
            # Several processes wait for a gradient of every weight, also of one that this batch
            # does not use, such as that of an expert or of a layer that another one has replaced.
            weights = (p.sum() for p in model.parameters() if p.requires_grad)
            loss = loss + sum(weights) * 0
        self.accelerator.backward(loss)
        return loss.detach()

    def _weighted(self, model: Module, part: Part, weight: Tensor | float) -> Tensor:
        """The loss of a part: the sum over its terms with their weights.

        Args:
            model: The student.
            part: The part.
            weight: Weight of each term of its lessons. Those of kept texts have their own.
        """
        objective, texts = self.objective, part.kept is not None
        if isinstance(objective, LabelKL) and not texts:
            return self._labels(model, part, objective) * weight
        alone = part.kept is not None and part.kept.start == 0
        if not (self.chunks and (objective.by_position or alone)):
            loss = self._whole(model, part, weight)
            if part.teacher is None:
                return loss
            layers = read(model, part.batch, layers=True).layers
            return loss + self._hidden(layers, part) * weight
        reading = read(model, part.batch, layers=part.teacher is not None)
        needs_logits = objective.needs_logits or texts
        if needs_logits and reading.head is None:  # the model caps or scales its logits
            self.chunks = False
            return self._weighted(model, part, weight)
        if needs_logits and reading.head is not None:
            terms = self._terms(part, weight, reading.hidden_ND.device)
            loss = chunked_sum(reading.hidden_ND, reading.head, terms)
        else:
            # Several processes wait for a gradient of every layer, even if no loss uses the layer.
            loss = reading.hidden_ND.sum() * 0
        if part.teacher is None:
            return loss
        return loss + self._hidden(reading.layers, part) * weight

    def _terms(
        self, part: Part, weight: Tensor | float, device: torch.device
    ) -> Callable[[Tensor, int, int], Tensor]:
        """Computes the weighted terms (C,) of a part's completion tokens from their logits (C, V)."""
        completion_N = part.batch.completion_N.to(device)
        targets = part.targets.to(device) if part.targets else None
        kept, border = part.kept, len(completion_N)
        if kept is not None:
            border, base = kept.start, kept.targets.to(device)
            kept_weight = kept.weight / self.current_gradient_accumulation_steps

        def terms(logits_CV: Tensor, start: int, end: int) -> Tensor:
            own, made = min(max(border - start, 0), end - start), []
            if own:
                whole = own == border
                known = targets if whole or not targets else targets.part(start, start + own)
                ids = completion_N[start : start + own]
                made.append(self.objective(logits_CV[:own], ids, known) * weight)
            if own < end - start:
                ids, known = (
                    completion_N[start + own : end],
                    base.part(start + own - border, end - border),
                )
                made.append(KEEPING(logits_CV[own:], ids, known) * kept_weight)
            return torch.cat(made)

        return terms

    def _labels(self, model: Module, part: Part, objective: LabelKL) -> Tensor:
        """The loss of labels. Many logits are computed in chunks."""
        inner: Any = getattr(model, "module", model)
        outputs = len(cast(Tensor, output_embeddings(inner).weight))
        if not self.chunks or len(part.batch.completion_N) * outputs <= MOST_LOGITS:
            return self._whole(model, part, 1.0)
        reading = read(model, part.batch)
        if reading.head is None:
            self.chunks = False
            return self._whole(model, part, 1.0)
        targets = part.targets.to(reading.hidden_ND.device)
        kept_NK = chunked(
            reading.hidden_ND,
            reading.head,
            lambda logits_CV, start: objective.of_positions(logits_CV, start, targets),
        )
        return objective.of_rows(kept_NK, targets).sum()

    def _whole(self, model: Module, part: Part, weight: Tensor | float) -> Tensor:
        """The weighted loss of the logits, all computed at once."""
        logits_NV = completion_logits(model, part.batch)
        if part.kept is None:
            device = logits_NV.device
            targets = part.targets.to(device) if part.targets else None
            ids_N = part.batch.completion_N.to(device)
            return self.objective(logits_NV, ids_N, targets).sum() * weight
        return self._terms(part, weight, logits_NV.device)(logits_NV, 0, len(logits_NV)).sum()

    def _hidden(self, layers: list[Tensor], part: Part) -> Tensor:
        """The loss of hidden states."""
        assert self.online is not None
        assert part.teacher is not None
        teacher_layers = self.online.hidden_states(part.teacher)
        return self.objective.hidden(layers, teacher_layers).sum()
