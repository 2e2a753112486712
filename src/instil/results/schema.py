"""The schemas of the files of a run and of a study.

`results.json` has the same schema for a run and for a cell of a study: the results of one method,
and of its baselines if the recipe asks for them. A report uses only these files, so it can be
written again on any machine, without torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, computed_field, model_validator

from instil.methods import METHODS, MethodName, Phase
from instil.results.logs import LogFacts
from instil.results.recovery import recovery
from instil.results.scores import (
    Drift,
    HarnessScore,
    Interval,
    Retention,
    ServedScore,
    SetScore,
)
from instil.results.training import Training
from instil.system.files import JsonFile, Strict

RESULTS, PREDICTIONS, FAILURE = "results.json", "predictions.jsonl", "failure.json"
EVALUATION = "evaluation.jsonl"
INDEX, CELLS = "study.json", "cells"
ENVIRONMENT, CONFIG, CONTEXT, REPORT = (
    "environment.json",
    "config.yaml",
    "context.txt",
    "report.html",
)
NO_MATTER: Any = {
    "task": {"folder"},
    "teacher": {"store": True, "engine": {"url", "python"}},
    "student": {"save"},
    "training": {"gradient_checkpointing", "report_to"},
    "evaluation": {"batch_size": True, "engine": {"python"}},
    "device_map": True,
    "attn_implementation": True,
}
"""Settings of a recipe that do not change its results: section -> keys."""
SPENT: tuple[Phase, ...] = ("generate", "teach", "keep", "train")
"""The phases whose cost is needed to make a student."""


class MethodResult(Strict):
    """The scores of one method, and its cost per query."""

    method: MethodName
    scores: list[SetScore] = Field(min_length=1, description="Scores on each evaluation set.")
    prompt_tokens_mean: float = Field(description="Mean length of the full prompt, in tokens.")
    seconds_per_query: float | None = Field(
        None,
        description="Seconds to read a single query with its full prompt, and to write an answer of "
        "the mean length, on a sample of rows; null if stored predictions were read.",
    )
    seconds_warm: float | None = Field(
        None,
        description="The same seconds if the prompts' common beginning is in a prefix cache; null "
        "for methods without a context, and if prompts have no common beginning.",
    )
    drift: Drift | None = Field(
        None,
        description="Drift from the base model; null without training, or if the base model was "
        "not loaded.",
    )
    retention: Retention | None = Field(
        None,
        description="Answers to general prompts, beside those of the base model; null without "
        "training, and for labels.",
    )


class PhaseCost(Strict):
    """The cost of one phase."""

    wall_seconds: float
    cpu_user_seconds: float
    cpu_system_seconds: float
    peak_rss_mb: float = Field(description="Highest resident memory in the phase, in MiB.")
    mean_rss_mb: float = Field(description="Mean resident memory in the phase, in MiB.")
    peak_allocated_mb: float | None = Field(
        None, description="Highest memory of tensors on the accelerator, in MiB; null on a CPU."
    )
    peak_reserved_mb: float | None = Field(
        None, description="Highest memory reserved on the accelerator, in MiB; null on a CPU."
    )
    tokens: int = Field(
        description="Number of token positions computed in forward passes, without padding."
    )
    steps: int = Field(
        description="Batches in `generate`, `teach` and `evaluate`; optimiser steps in `train`."
    )


class Message(Strict):
    """One turn of a chat."""

    role: str
    content: str


class SentPrompt(Strict):
    """The prompt to send to the student, and what ends its answer."""

    format: Literal["chat", "plain"]
    pattern: str | None = Field(
        description="Prompt to send, with the fields of the query in braces; null for chat."
    )
    messages: list[Message] | None = Field(
        description="Turns to send, with `{input}` in place of the query; null for plain."
    )
    template_kwargs: dict[str, Any] = Field({}, description="Arguments of the chat template.")
    date: str | None = Field(
        None,
        description="Date that the chat template showed as today's; null if it shows no date.",
    )
    thinking_end: str | None = Field(
        None,
        description="Text that ends what the model thinks before it answers; null if the chat "
        "template lets it answer at once.",
    )
    stop: list[str] = Field(description="Strings that end an answer.")
    end_ids: list[int] = Field(description="Token ids that end an answer.")
    max_new_tokens: int | None = Field(
        description="Maximum number of tokens per answer; null for labels."
    )
    words: dict[str, list[str]] = Field(
        {}, description="Label -> its surface forms after the prompt. Empty for free text."
    )


class ContextFacts(Strict):
    """The context that the teacher or the method reads."""

    description: str = Field(description="Short description, for example `8 demonstrations`.")
    k: int = Field(description="Demonstrations per context.")
    tokens: float | None = Field(
        None,
        description="Mean number of prompt tokens that the context adds; null for labels.",
    )
    sha256: str | None = Field(
        None, description="Digest of the context; null if queries have different contexts."
    )
    messages: list[Message] = Field(
        [],
        description="Turns with the context, with `{input}` in place of the query. Empty for the plain "
        "format, and if queries have different contexts.",
    )


class RowsFacts(Strict):
    """Facts about a set of rows."""

    rows: int = Field(description="Number of rows.")
    sha256: str = Field(description="Digest of their inputs and outputs, in their order.")


def break_even(spent: float, saved: float) -> int | None:
    """Returns the number of queries that pay back the student's cost; None if none do.

    Args:
        spent: Seconds to make the student.
        saved: Seconds saved per query, compared with in-context.
    """
    return math.ceil(spent / saved) if saved > 0 else None


class Results(JsonFile):
    """The content of `results.json`."""

    lies_in: ClassVar[str] = "finished run"

    schema_version: Literal[1] = 1
    instil_version: str
    name: str = Field("", description="Name of the cell's folder in a study.")
    varied: dict[str, Any] = Field(
        {}, description="Keys of the study's grid, with the values of this cell."
    )
    recipe: dict[str, Any] = Field(description="All settings.")
    model: str = Field(description="Model of the student.")
    teacher_model: str | None = Field(
        description="Model of the teacher. null: no teacher, or the student's model with the "
        "adapter off."
    )
    model_source: str = Field(
        "",
        description="Where the weights of `model` were found, from any working directory of the "
        "same machine: an absolute folder, OWNER/NAME@COMMIT on the hub, or bundled:NAME.",
    )
    teacher_source: str | None = Field(
        None, description="The same for `teacher_model`; null if that is null."
    )
    dtype: str = Field(description="Number format of the weights.")
    answered_by: str | None = Field(
        None, description="Engine that answered the evaluation rows; null: this process."
    )
    seed: int
    task: str = Field(description="Name of the task.")
    labels: list[str] = Field([], description="Names of the labels. Empty for free text.")
    rows: dict[str, RowsFacts] = Field(
        {}, description="The rows that were read: `training` and each evaluation set."
    )
    prompt: SentPrompt
    context: ContextFacts | None = Field(
        None, description="The context; null if no method reads a context."
    )
    methods: list[MethodResult] = Field(
        min_length=1, description="Results of the recipe's method, then of its baselines."
    )
    teacher: list[SetScore] = Field(
        [],
        description="Distillation of labels only. Scores of the teacher on the same rows. For free "
        "text, see in_context among the methods.",
    )
    recovery_interval: Interval | None = Field(
        None,
        description="95 % interval of recovery, from a paired bootstrap over rows; null if recovery "
        "is null, or if the context's gain is not clear of chance on these rows.",
    )
    training: Training | None = Field(
        None, description="Facts about the training; null without training."
    )
    phases: dict[Phase, PhaseCost] = Field(description="Cost of each phase.")
    reused: list[Phase] = Field(
        [],
        description="Phases whose work was reused from another cell, where their cost was "
        "measured.",
    )
    left_out: int = Field(
        0, description="Number of training rows left out because they are evaluation rows too."
    )
    logs: LogFacts | None = Field(
        None, description="What was found in a file of conversations; null if there are none."
    )
    served: list[ServedScore] = Field(
        [],
        description="How the student answers where it will be served; empty if that was not tried "
        "(instil check --engine).",
    )
    harness: list[HarnessScore] = Field(
        [],
        description="Benchmarks of student and base; empty if none were run (instil check --lm-eval).",
    )
    shipped_bytes: int = Field(
        0, description="Size of the trained weights, which a user of the student needs."
    )

    @model_validator(mode="before")
    @classmethod
    def _computed_again(cls, values: Any) -> Any:
        """Drops computed fields from a file. They are computed again from the other fields."""
        if isinstance(values, dict):
            return {k: v for k, v in values.items() if k not in cls.model_computed_fields}
        return values

    @computed_field(  # type: ignore[prop-decorator]
        description="(student - zero-shot) / (in-context - zero-shot), for accuracy on the first "
        "set; null without these baselines, without gold outputs, or if in-context is not better "
        "than zero-shot."
    )
    @property
    def recovery(self) -> float | None:
        """Share of the context's gain in accuracy that the student recovers."""
        zero_shot, in_context = self._accuracy("zero_shot"), self._accuracy("in_context")
        student = self._accuracy(self.method) if self.training else None
        if zero_shot is None or in_context is None or student is None:
            return None
        return recovery(zero_shot=zero_shot, in_context=in_context, student=student)

    @computed_field(  # type: ignore[prop-decorator]
        description="The student's KL to the teacher, as a share of zero-shot's, on the first set; null "
        "without these."
    )
    @property
    def kl_share(self) -> float | None:
        """The student's KL to the teacher, as a share of zero-shot's."""
        before = self.result("zero_shot")
        after = self.methods[0].scores[0].fidelity if self.training else None
        found = before.scores[0].fidelity if before else None
        if after is None or found is None or found.kl_to_teacher == 0:
            return None
        return after.kl_to_teacher / found.kl_to_teacher

    @computed_field(  # type: ignore[prop-decorator]
        description="Prompt tokens saved per query, compared with in-context; null without that "
        "baseline."
    )
    @property
    def tokens_saved(self) -> float | None:
        """Prompt tokens saved per query, compared with in-context."""
        before = self.result("in_context")
        if before is None or self.training is None:
            return None
        return before.prompt_tokens_mean - self.methods[0].prompt_tokens_mean

    @computed_field(  # type: ignore[prop-decorator]
        description="Number of queries after which the time saved per query, compared with "
        "in-context, exceeds the time for generate + teach + train; null if no time is saved, or "
        "without that baseline."
    )
    @property
    def break_even_queries(self) -> int | None:
        """Number of queries after which the time saved exceeds the time to make the student."""
        before, after = self.result("in_context"), self.methods[0]
        if before is None or self.training is None:
            return None
        if before.seconds_per_query is None or after.seconds_per_query is None:
            return None
        saved = before.seconds_per_query - after.seconds_per_query
        spent = sum(self.phases[name].wall_seconds for name in SPENT if name in self.phases)
        return break_even(spent, saved)

    @property
    def method(self) -> MethodName:
        """The recipe's method."""
        return self.methods[0].method

    @property
    def tuning(self) -> str | None:
        """`full`, `lora` or `bitfit`; None without training."""
        return str(self.recipe["tuning"]["name"]) if self.training else None

    @property
    def k(self) -> int:
        """Demonstrations per context; 0 if the recipe's method reads no context."""
        method = METHODS[self.method]
        reads = method.context or method.teacher
        return self.context.k if self.context and reads else 0

    def result(self, method: MethodName) -> MethodResult | None:
        """Returns the result of a method, or None if the method was not run."""
        return next((result for result in self.methods if result.method == method), None)

    def _accuracy(self, method: MethodName) -> float | None:
        result = self.result(method)
        score = result.scores[0].accuracy if result else None
        return score.value if score else None


Ending = Literal["finished", "cut", "repeats"]


class Prediction(Strict):
    """One line of `predictions.jsonl`: the answer of one method to one evaluation row."""

    set: str = Field(description="Name of the evaluation set.")
    row: int = Field(
        description="Number of the row in its set. Cells with the same seed have the same rows."
    )
    method: MethodName
    input: str
    expected: str | None = Field(
        description="Gold label or (free text) gold result, such as a number; null without a gold "
        "output."
    )
    predicted: str = Field(description="Predicted label or (free text) result of the answer.")
    correct: bool | None = Field(
        description="Whether the answer is right; null without a gold output, and if the first "
        "metric gives a number and not yes or no."
    )
    probabilities: dict[str, float] = Field(
        {}, description="Label -> probability. They sum to 1. Empty for free text."
    )
    text: str | None = Field(None, description="Free text only. The full answer.")
    values: dict[str, float] = Field(
        {}, description="Metric of `evaluation.metrics` -> its value, from 0 to 1."
    )
    rules: dict[str, bool] = Field(
        {}, description="Rule that applies -> whether the answer obeys it."
    )
    tokens: int | None = Field(
        None,
        description="Free text only. Length of the answer in tokens, with the one that ends it.",
    )
    ending: Ending | None = Field(
        None,
        description="Free text only. finished: the answer has an end. cut: it reached the length "
        "limit. repeats: it repeats itself, and was cut.",
    )
    turn: int | None = Field(
        None, description="Conversations only. Number of the answer in its conversation, from 1."
    )
    kl: float | None = Field(
        None,
        description="Free text only. KL(teacher || method) on the completion of this row, in nats "
        "per token; null without a teacher.",
    )

    @property
    def score(self) -> float | None:
        """The value of the first metric: 1 or 0, or a number between; None without a gold output."""
        for value in self.values.values():
            return value
        return None if self.correct is None else float(self.correct)


class EvaluationRow(Strict):
    """One line of `evaluation.jsonl`: a row that all methods answered."""

    set: str = Field(description="Name of the evaluation set.")
    row: int = Field(description="Number of the row in its set, as in `predictions.jsonl`.")
    input: str
    output: str | None = Field(description="Gold output; null without one.")
    messages: list[Message] = Field(
        [],
        description="What was said before the answer, without the context. Empty for a single turn.",
    )
    turn: int | None = Field(None, description="Number of the answer in its conversation, from 1.")


class Failure(JsonFile):
    """The content of `failure.json`: why a cell has no results."""

    lies_in: ClassVar[str] = "study"

    name: str
    varied: dict[str, Any]
    error: str = Field(description="Kind of error, for example `UnknownModelError`, or `killed`.")
    message: str
    seconds: float


FolderName = Annotated[str, Field(min_length=1, pattern=r"^[^/\\]*[^/\\.][^/\\]*$")]
"""The name of a folder. It cannot be a path that leads out of the study."""


class StudyIndex(JsonFile):
    """The content of `study.json`: the cells of a study."""

    lies_in: ClassVar[str] = "study"

    schema_version: Literal[1] = 1
    title: str
    description: str = ""
    varied: list[str] = Field(description="Keys of the grid, in the order of the recipe.")
    cells: list[FolderName] = Field(
        description="Names of the folders in `cells/`, in the order of the grid."
    )
