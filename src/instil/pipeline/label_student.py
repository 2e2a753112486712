"""The student of a classification task: made, trained, asked, saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from instil.losses.label_kl import LabelKL, LabelTargets
from instil.methods import Method
from instil.models.load import LanguageModel, load, load_for_training
from instil.models.reader import read_labels
from instil.models.reshape import keep_layers, put_head
from instil.models.roles import shared_out, take_over
from instil.prompts.labels import LabelTokens
from instil.recipe.recipe import Recipe
from instil.results.cell import CellTraining
from instil.system.progress import Advance, Display
from instil.training import trainer

HEAD = ([0],)  # a classification head reads the prompt, and nothing after it


@dataclass(frozen=True)
class LabelLesson:
    """One training row of a classification task.

    Attributes:
        prompt: What the student reads.
        completions: What is put after it so that every label can be scored.
        targets: The row's label, and what the teacher says of it.
    """

    prompt: list[int]
    completions: Sequence[list[int]]
    targets: LabelTargets
    teacher_prompt: None = None

    @property
    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """The prompt with each of the completions."""
        return [(self.prompt, completion) for completion in self.completions]

    @property
    def terms(self) -> int:
        """Terms that the row adds to the loss."""
        return 1


@dataclass(frozen=True)
class LabelStudent:
    """A model that answers with labels.

    Attributes:
        recipe: Its settings.
        model: Its weights.
        choices: The labels' tokens; None if it has a classification head.
    """

    recipe: Recipe
    model: LanguageModel
    choices: LabelTokens | None

    @classmethod
    def make(cls, recipe: Recipe, method: Method, choices: LabelTokens) -> LabelStudent:
        """Loads the model and makes trainable what is to be trained.

        Raises:
            TuningError: the model does not allow the tuning.
        """
        trains = method.learns is not None
        loading = load_for_training if trains and recipe.tuning.trains_base else load
        model = loading(recipe.model, dtype=recipe.dtype)
        if recipe.student.keep_layers is not None:
            keep_layers(model.network, recipe.student.keep_layers)
        head = None
        if method.head == "classification":
            head = put_head(model.network, len(choices.labels), seed=recipe.seed)
        if trains:
            network: Any = recipe.tuning.apply(model.network, seed=recipe.seed, head=head)
            model = replace(model, network=network.eval())
        return cls(recipe, model, None if head else choices)

    @property
    def completions(self) -> Sequence[list[int]]:
        """What is put after a prompt."""
        return HEAD if self.choices is None else self.choices.completions

    def logprobs(self, prompts: Sequence[list[int]], *, advance: Advance) -> Tensor:
        """Log-probability of each label, shape (R, L), nats; of a classification head, they sum to 1."""
        choices = self.choices

        def make(logits_NV: Tensor) -> dict[str, Tensor]:
            found = logits_NV.log_softmax(-1) if choices is None else choices.logprobs(logits_NV)
            return {"logprobs_RL": found.cpu()}

        return read_labels(
            self.model,
            prompts,
            self.completions,
            batch_size=self.recipe.evaluation.batch_size,
            advance=advance,
            make=make,
        )["logprobs_RL"]

    def train(
        self,
        prompts: Sequence[list[int]],
        targets: Sequence[LabelTargets],
        *,
        objective: LabelKL,
        scratch: Path,
        advance: Advance,
        display: Display,
    ) -> CellTraining:
        """Trains in place.

        Args:
            prompts: Of the training rows.
            targets: One a row.
            objective: The loss.
            scratch: A folder for what training leaves behind.
            advance: Told of progress.
            display: Shows progress.

        Raises:
            NotFiniteLossError: the loss became NaN or infinite.
        """
        lessons = [
            LabelLesson(prompt, self.completions, target)
            for prompt, target in zip(prompts, targets, strict=True)
        ]
        report = trainer.train(
            self.model.network,
            lessons,
            objective=objective,
            settings=self.recipe.training,
            seed=self.recipe.seed,
            pad_id=self.model.pad_id,
            checkpoints=scratch,
            resumable=False,
            advance=advance,
            display=display,
        )
        every = list(self.model.network.parameters())
        trained = sum(p.numel() for p in every if p.requires_grad)
        return CellTraining(
            rows=len(lessons),
            steps=report.steps,
            trainable_parameters=trained,
            trainable_share=trained / sum(p.numel() for p in every),
            loss=report.loss,
        )

    def made_whole(self, method: Method, choices: LabelTokens) -> LabelStudent:
        """The same after training, with weights that one process can run: where FSDP has shared them out, loaded anew.

        All processes of a launch have to call it.

        Args:
            method: As it was given to `make`.
            choices: The same.
        """
        trained = shared_out(self.model.network)
        if trained is None:
            return self
        again = LabelStudent.make(self.recipe, method, choices)
        take_over(again.model.network, trained)
        return again

    @property
    def shipped_bytes(self) -> int:
        """Size of the trained weights."""
        return sum(
            p.numel() * p.element_size() for p in self.model.network.parameters() if p.requires_grad
        )

    def save(self, folder: Path) -> None:
        """Writes the trained weights, and with a whole model its tokenizer."""
        self.recipe.tuning.save(self.model.network, folder, head=self.choices is None)
        if (folder / "model").exists():
            self.model.tokenizer.save_pretrained(folder / "model")
