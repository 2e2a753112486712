"""The table of methods: each is a row, so that all take one path and are compared fairly; and the names of phases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

MethodName = Literal[
    "zero_shot",
    "in_context",
    "vanilla_fine_tuning",
    "pattern_fine_tuning",
    "pattern_fine_tuning_in_context",
    "distillation",
]
Phase = Literal["load", "generate", "teach", "train", "evaluate"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Method:
    """How a method learns and answers.

    Attributes:
        label: What a person reads.
        learns: What its training compares it with: nothing, the gold labels, or the teacher's targets.
        context: Whether the context is in the prompts that it answers.
        context_in_training: Whether it is in the prompts that it learns from.
        head: What its logits stand for: tokens, or labels.
        teacher: Whether the teacher is what answers, or what it learns from.
    """

    label: str
    learns: Literal["labels", "targets"] | None = None
    context: bool = False
    context_in_training: bool = False
    head: Literal["language_model", "classification"] = "language_model"
    teacher: bool = False


METHODS: dict[MethodName, Method] = {
    "zero_shot": Method("zero-shot"),
    "in_context": Method("in-context", context=True, teacher=True),
    "vanilla_fine_tuning": Method("vanilla fine-tuning", learns="labels", head="classification"),
    "pattern_fine_tuning": Method("pattern fine-tuning", learns="labels"),
    "pattern_fine_tuning_in_context": Method(
        "pattern fine-tuning with context", learns="labels", context=True, context_in_training=True
    ),
    "distillation": Method("distillation", learns="targets", teacher=True),
}

RunMethodName = Literal["zero_shot", "in_context", "distilled"]
STUDY_METHODS: dict[RunMethodName, MethodName] = {
    "zero_shot": "zero_shot",
    "in_context": "in_context",
    "distilled": "distillation",
}
"""What every run compares, by its keys in `results.json`, as studies call it."""

RUN_METHODS: dict[RunMethodName, Method] = {
    name: METHODS[method] for name, method in STUDY_METHODS.items()
} | {"distilled": replace(METHODS["distillation"], label="distilled")}
"""The same as runs call it."""
