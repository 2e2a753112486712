"""The tables of methods: each is a row, so that all go down one path and are compared fairly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from instil.cell import StudyMethod
from instil.results import MethodName


@dataclass(frozen=True)
class Method:
    """How a query is answered in a run.

    Attributes:
        name: Its key in `results.json`.
        label: What a person reads.
        context: Whether the context is in the prompt at evaluation.
        adapter: Whether the trained adapter is on.
    """

    name: MethodName
    label: str
    context: bool
    adapter: bool


METHODS = (
    Method("zero_shot", "zero-shot", context=False, adapter=False),
    Method("in_context", "in-context", context=True, adapter=False),
    Method("distilled", "distilled", context=False, adapter=True),
)


@dataclass(frozen=True)
class Compared:
    """How a method of a study learns and answers.

    Attributes:
        label: What a person reads.
        learns: What its training compares it with: nothing, the gold labels, or the teacher's targets.
        context: Whether the context is in the prompts that it answers.
        context_in_training: Whether it is in the prompts that it learns from.
        head: What its logits stand for: tokens, or labels.
        teacher: Whether the recipe's teacher is what answers, or what it learns from.
    """

    label: str
    learns: Literal["labels", "targets"] | None = None
    context: bool = False
    context_in_training: bool = False
    head: Literal["language_model", "classification"] = "language_model"
    teacher: bool = False


COMPARED: dict[StudyMethod, Compared] = {
    "zero_shot": Compared("zero-shot"),
    "in_context": Compared("in-context", context=True, teacher=True),
    "vanilla_fine_tuning": Compared("vanilla fine-tuning", learns="labels", head="classification"),
    "pattern_fine_tuning": Compared("pattern fine-tuning", learns="labels"),
    "pattern_fine_tuning_in_context": Compared(
        "pattern fine-tuning with context", learns="labels", context=True, context_in_training=True
    ),
    "distillation": Compared("distillation", learns="targets", teacher=True),
}
