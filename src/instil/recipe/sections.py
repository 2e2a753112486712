"""The sections of a recipe, one a class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

DEFAULT_STEPS = 60  # see benchmarks/training_defaults.py; more if one pass over the rows needs more


class Section(BaseModel):
    """One section: it knows no unknown keys, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ContextFiles(Section):
    """Where the context is read from."""

    demos: Path | None = None
    instruction: Path | None = None
    document: Path | None = None
    k: int | None = Field(None, ge=1, description="take the first k demonstrations")


class Demonstrations(Section):
    """How a task's demonstrations are drawn from its training set."""

    k: int = Field(8, ge=0, description="demonstrations a context; 0 makes a zero-shot teacher")
    pool: int = Field(3000, ge=1, description="rows that they are drawn from")
    draw: Literal["fixed", "per_query"] = Field(
        "fixed", description="once for all queries, or anew for each"
    )
    contexts: int | None = Field(
        None,
        ge=1,
        description="with per_query: so many contexts, dealt out among the queries (those of teacher.contexts are averaged); null: one for each",
    )
    balanced: bool = Field(True, description="as many of each label as can be")
    answers: Literal["gold", "shuffled"] = Field(
        "gold", description="shuffled: a control whose answers are dealt out anew among the queries"
    )

    @model_validator(mode="after")
    def _enough_to_shuffle(self) -> Self:
        if self.answers == "shuffled" and self.k == 1:
            raise ValueError("answers: shuffled needs k > 1: one answer stays where it is")
        if self.contexts is not None and self.draw != "per_query":
            raise ValueError("contexts: only with draw: per_query; fixed has one for all queries")
        return self


class Data(Section):
    """Where the rows are read from."""

    inputs: Path | None = None
    eval: Path | None = None
    allow_overlap: bool = False


class Prompt(Section):
    """How a query is put to the model."""

    format: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="auto: chat where there is a template; with a classification task, plain",
    )
    pattern: str = "Q: {input}\nA:"
    completion: str = " {output}\n"
    separator: str = Field(
        "\n", description="plain: stands between a demonstration and what follows"
    )
    chat_template_kwargs: dict[str, Any] = {}

    @field_validator("pattern")
    @classmethod
    def _has_input(cls, value: str) -> str:
        if value.count("{input}") != 1:
            raise ValueError("must hold {input} exactly once")
        return value

    @field_validator("completion")
    @classmethod
    def _has_output_and_stop(cls, value: str) -> str:
        if value.count("{output}") != 1:
            raise ValueError("must hold {output} exactly once")
        if not value.partition("{output}")[2]:
            raise ValueError("must hold text after {output}: it is what ends an answer")
        return value


class Teacher(Section):
    """Who teaches, and who writes the completions that are learnt."""

    model: str | None = Field(None, description="null: the student's own weights, adapter off")
    completions: Literal["teacher", "gold"] = "teacher"
    samples: int = Field(
        1, ge=1, description="completions an input; more than 1 needs a temperature"
    )
    sampling_temperature: float = Field(0.0, ge=0, description="0 decodes greedily")
    max_new_tokens: int | None = Field(
        None, ge=1, description="null: from the longest known answer"
    )
    top_k: int = Field(
        256,
        ge=1,
        description="most outcomes kept a token; the tail is one more, or as many may be drawn from it",
    )
    min_probability: float = Field(
        5e-4, ge=0, lt=1, description="of what is kept, at temperature 1; 0 with mass 1: all top_k"
    )
    mass: float = Field(
        1.0, gt=0, le=1, description="keep no more of a token than covers this, at temperature 1"
    )
    mass_per_draw: float = Field(
        1e-3,
        ge=0,
        lt=1,
        description="of what is not kept, one outcome is drawn for each such part of its mass, for forward_kl, top_k at most; 0: none",
    )
    store: Path | None = Field(
        None,
        description="folder of targets that runs share and that stays; null: a study's own, or gone with the run",
    )
    contexts: int = Field(
        1, ge=1, description="of a task: sets of demonstrations whose predictions are averaged"
    )
    calibration: Literal["none", "contextual", "batch"] = Field(
        "none",
        description="of a task: divide by the prediction for an input without content, or by the mean over the inputs",
    )

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.sampling_temperature == 0:
            raise ValueError(
                "samples > 1 needs sampling_temperature > 0: greedy samples are all equal"
            )
        if self.completions == "gold" and (self.samples > 1 or self.sampling_temperature > 0):
            raise ValueError(
                "samples and sampling_temperature are for completions: teacher, not gold"
            )
        return self


class Student(Section):
    """Who learns."""

    keep_layers: int | tuple[int, ...] | None = Field(
        None,
        description="of a task: how many layers of the model, evenly spread, or which ones, make the student",
    )
    save: bool = Field(True, description="of a task: keep the trained weights with the cell")


class Training(Section):
    """How the student is optimised."""

    rows: int | None = Field(
        None,
        ge=1,
        description="of a task: inputs to learn from; null: 400, or half of a smaller training set",
    )
    learning_rate: float = Field(1e-3, gt=0)
    epochs: float | None = Field(None, gt=0, description="null: max_steps decides")
    max_steps: int | None = Field(
        None,
        ge=1,
        description="null: epochs decide; both null: 60 steps, or one epoch if that is more",
    )
    batch_size: int = Field(
        16, ge=1, description="rows of a forward pass, all processes of a launch together"
    )
    grad_accumulation: int = Field(1, ge=1)
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps spent warming up")
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in backward: slower, in less memory"
    )
    report_to: Literal["none", "tensorboard"] = Field(
        "none", description="where the loss curve goes, too; tensorboard: files in the run folder"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps exclude each other")
        return self

    def steps(self, rows: int) -> int:
        """Optimiser steps for this number of rows."""
        if self.max_steps is not None:
            return self.max_steps
        one_pass = math.ceil(math.ceil(rows / self.batch_size) / self.grad_accumulation)
        if self.epochs is None:
            return max(DEFAULT_STEPS, one_pass)
        return math.ceil(self.epochs * one_pass)


class Evaluation(Section):
    """How the student is judged."""

    batch_size: int = Field(64, ge=1, description="most rows decoded or scored together")
    rows: int | None = Field(None, ge=1, description="of a task: rows of each set; null: 500")
    rows_out_of_domain: int | None = Field(
        None, ge=1, description="of a task: rows of each set from elsewhere; null: as many"
    )
    at_steps: int | tuple[int, ...] | None = Field(
        None,
        description="with answers in free text: evaluate before training, every N steps (or at the listed steps) and at the end; keep the best",
    )
    validation_rows: int = Field(
        50, ge=1, description="with at_steps: rows of the training set that it is judged on"
    )

    @field_validator("at_steps")
    @classmethod
    def _from_one_on(cls, at_steps: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if (
            at_steps is not None
            and min([at_steps] if isinstance(at_steps, int) else at_steps, default=0) < 1
        ):
            raise ValueError("steps are counted from 1, and a list names at least one")
        return at_steps
