"""The schemas of what is known of the training of a student."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from instil.results.scores import Fidelity, Proportion
from instil.system.files import Strict

Ended = Literal["plateau", "kl_share", "max_steps"]
"""Why a training with `training.until` ended."""


class Checkpoint(Strict):
    """Scores of a student before or during training, on validation rows.

    Validation rows are neither training rows nor evaluation rows.
    """

    step: int = Field(
        description="Number of optimiser steps. 0: before training; this checkpoint is never kept."
    )
    accuracy: Proportion | None = Field(
        description="Share of right answers; null if no row has a gold output."
    )
    cross_entropy: float = Field(description="Cross-entropy of the completions, in nats per token.")
    fidelity: Fidelity | None = Field(
        None, description="Fidelity to the teacher; null without a teacher."
    )
    kept: bool = Field(description="Whether this checkpoint is the final student.")


class HeldOutLoss(Strict):
    """The loss on held-out rows after a number of optimiser steps.

    The rows are neither training rows nor evaluation rows.
    """

    step: int = Field(description="Number of optimiser steps. 0: before training; never kept.")
    loss: float = Field(
        description="Mean loss per token; with forward_kl, the KL to the teacher's stored targets."
    )
    kept: bool = Field(description="Whether the weights after this step are the final student.")


class MadeInputs(Strict):
    """Inputs that the teacher wrote, because few were given. `made_inputs.jsonl` holds them."""

    rows: int = Field(description="Number of inputs that were added to the given ones.")
    asked: int = Field(description="Number of inputs that were asked for.")
    repeated: int = Field(description="Number of inputs left out because they were there already.")
    near: int = Field(
        description="Number of inputs left out because they are much like an evaluation row."
    )
    unfit: int = Field(description="Number of inputs left out because they were empty or too long.")


class LoggedTargets(Strict):
    """Predictions of the teacher that stood in the rows (`teacher.targets: logged`)."""

    rows: int = Field(description="Number of learnt completions with predictions.")
    tokens: int = Field(
        description="Number of their tokens that are learnt from these. The others are learnt as text."
    )


class Training(Strict):
    """Facts about the training of a student."""

    rows: int = Field(description="Number of training rows (free text: of completions).")
    tokens: int | None = Field(
        None, description="Number of completion tokens in the training rows; null for labels."
    )
    truncated_completions: int = Field(
        0, description="Number of teacher completions that were cut at `max_new_tokens`."
    )
    made_inputs: MadeInputs | None = Field(
        None, description="Inputs that the teacher wrote; null if training.make_inputs is 0."
    )
    logged_targets: LoggedTargets | None = Field(
        None, description="Predictions that stood in the rows; null if the teacher made them."
    )
    steps: int = Field(description="Number of optimiser steps.")
    trainable_parameters: int = Field(description="Number of trained parameters.")
    trainable_share: float = Field(description="Their share of all parameters of the student.")
    loss: list[tuple[int, float]] = Field(
        description="Pairs of a step and the mean loss (per row or token) since the previous pair; with "
        "kept texts, plus keep.weight times their mean loss."
    )
    checkpoints: list[Checkpoint] = Field(
        [], description="Free text only. Checkpoints that evaluation.at_steps asks for."
    )
    held_out_rows: int = Field(
        0, description="Number of rows (of completions) that training.until holds out."
    )
    held_out: list[HeldOutLoss] = Field(
        [], description="With training.until, the loss on the held-out rows."
    )
    ended: Ended | None = Field(
        None,
        description="Why training ended: plateau (the held-out loss no longer fell), kl_share (it "
        "was low enough) or max_steps. null: the number of steps was fixed.",
    )
