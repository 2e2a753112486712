"""`results.json`: its schema, reading and writing.

Everything that a report says comes from these models, so that a report can be drawn again later, on another machine,
without torch.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from instil.methods import Phase, RunMethodName
from instil.system.files import JsonFile, Strict

RESULTS = "results.json"


class Proportion(Strict):
    """A share of rows with its 95 % Wilson interval."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    n: int = Field(ge=1, description="rows counted")


class MethodResult(Strict):
    """What one method scored on the evaluation rows, and what a query costs with it."""

    accuracy: Proportion | None = Field(
        description="exact match of the decoded, stripped completion; null without gold outputs"
    )
    prompt_tokens_mean: float = Field(description="tokens of the whole prompt, a query")
    seconds_per_query: float = Field(
        description="mean seconds to answer one query alone, its whole prompt read, on a sample of rows"
    )


class Pair(Strict):
    """One number without training, one with it."""

    zero_shot: float
    distilled: float


class Fidelity(Strict):
    """How close the student's predictions are to the teacher's, teacher-forced on held-out completions."""

    kl_to_teacher: Pair = Field(
        description="KL(teacher || student), nats a token, over the whole vocabulary"
    )
    top1_agreement: Pair = Field(
        description="share of tokens where both name the same most likely token"
    )
    n_tokens: int
    completions: Literal["gold", "teacher"] = Field(
        description="who wrote the held-out completions"
    )


class Drift(Strict):
    """How far the student moved on text that has nothing to do with the task."""

    kl_to_base: float = Field(description="KL(base || student), nats a token")
    n_tokens: int


class PhaseCost(Strict):
    """What one phase cost."""

    wall_seconds: float
    cpu_user_seconds: float
    cpu_system_seconds: float
    peak_rss_mb: float = Field(description="highest resident memory seen in the phase, MiB")
    mean_rss_mb: float = Field(description="mean resident memory over the phase's samples, MiB")
    peak_allocated_mb: float | None = Field(
        None, description="highest memory of tensors on the accelerator, MiB; null on a CPU"
    )
    peak_reserved_mb: float | None = Field(
        None, description="highest memory held from the accelerator, MiB; null on a CPU"
    )
    tokens: int = Field(description="token positions computed by a forward pass, padding left out")
    steps: int = Field(
        description="batches in `generate`, `teach` and `evaluate`; optimiser steps in `train`"
    )


class Cost(Strict):
    """What distilling saves, and when it has paid for itself."""

    prompt_tokens_saved_per_query: float
    break_even_queries: int | None = Field(
        description="queries after which generate + teach + train are paid back; null if a query saves no time"
    )


class Training(Strict):
    """How the student was trained."""

    rows: int
    tokens: int = Field(description="completion tokens in the training rows")
    truncated_completions: int = Field(description="teacher completions cut at `max_new_tokens`")
    steps: int
    trainable_parameters: int
    trainable_share: float
    loss: list[tuple[int, float]] = Field(
        description="(step, mean loss a token since the point before)"
    )


class Message(Strict):
    """One turn of a chat."""

    role: str
    content: str


class Results(JsonFile):
    """The whole of `results.json`."""

    lies_in: ClassVar[str] = "finished run"

    schema_version: Literal[1] = 1
    instil_version: str
    model: str
    teacher_model: str | None = Field(description="null: the same weights with the adapter off")
    dtype: str
    seed: int
    format: Literal["chat", "plain"]
    student_prompt: str | None = Field(
        description="the prompt to send, with the query in place of `{input}`; null for chat"
    )
    student_messages: list[Message] | None = Field(
        description="the turns to send, with the query in place of `{input}`; null for plain"
    )
    stop: list[str] = Field(description="strings that end an answer")
    max_new_tokens: int = Field(description="limit of the answers that were evaluated")
    context: dict[str, Any] = Field(
        description="what the teacher read: number of demonstrations, tokens, …"
    )
    methods: dict[RunMethodName, MethodResult]
    recovery: float | None = Field(
        description="(distilled - zero-shot) / (in-context - zero-shot); null where in-context gains nothing, "
        "or without gold outputs"
    )
    fidelity: Fidelity
    drift: Drift
    training: Training
    phases: dict[Phase, PhaseCost]
    cost: Cost


class Prediction(Strict):
    """One line of `predictions.jsonl`: one evaluation row answered by one method."""

    row: int
    method: RunMethodName
    input: str
    expected: str | None
    output: str
    correct: bool | None
