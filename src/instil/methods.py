"""The methods that are compared, and the names of the phases of a run.

Each method is one row of a table. All methods run the same code, so the comparison is fair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

MethodName = Literal[
    "zero_shot",
    "in_context",
    "vanilla_fine_tuning",
    "pattern_fine_tuning",
    "pattern_fine_tuning_in_context",
    "distillation",
]
Phase = Literal["load", "generate", "teach", "keep", "train", "evaluate"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Method:
    """How a method learns and answers.

    Attributes:
        label: Name that is shown to the user.
        learns: What it is trained on: gold labels or the teacher's targets. None: no training.
        context: Whether the evaluation prompts contain the context.
        context_in_training: Whether the training prompts contain the context.
        head: Whether the logits are those of tokens (`language_model`) or of labels
            (`classification`).
        teacher: Whether the method uses the teacher, to answer or to learn from.
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
