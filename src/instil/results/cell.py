"""`cell.json`: what one cell of a study scored and what it cost; its schema, reading and writing.

A study is a recipe with a grid; a cell is one combination of the grid's values: one method, one tuning, one seed. All
that a study's report says comes from these models, so it can be drawn again anywhere, without torch.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from instil.methods import MethodName, Phase
from instil.results.schema import PhaseCost, Proportion
from instil.system.files import JsonFile, Strict

CELL, PREDICTIONS, FAILURE = "cell.json", "predictions.jsonl", "failure.json"
NO_MATTER: Any = {
    "task": {"folder"},
    "teacher": {"store"},
    "student": {"save"},
    "training": {"gradient_checkpointing", "report_to"},
    "evaluation": {"batch_size"},
}
"""Settings of a recipe that change how it is run or what it keeps, but none of its numbers: section -> keys."""

Domain = Literal["in", "out"]


class SingleContext(Strict):
    """One of several sets of demonstrations, scored alone."""

    accuracy: float = Field(description="as the model says it, without calibration")
    calibrated: float | None = Field(description="with the teacher's calibration; null without one")


class Closeness(Strict):
    """How close a student's distributions are to its teacher's."""

    kl_to_teacher: float = Field(
        description="KL(teacher || student), nats: over the labels, a row; of written answers over the vocabulary, a token of the gold answer"
    )
    agreement: float = Field(
        description="share of rows, or of those tokens, where both name the same label or token"
    )


class SetScore(Strict):
    """What a method scored on one set of evaluation rows."""

    name: str = Field(description="of the set, for example `mnli_mismatched`")
    domain: Domain = Field(description="in: where the training rows come from; out: elsewhere")
    accuracy: Proportion
    chance: float = Field(description="1 / number of labels; 0 for written answers")
    majority: float = Field(
        description="share of the most frequent gold label; 0 for written answers"
    )
    calibration_error: float | None = Field(
        description="expected calibration error of the predicted label's probability, 10 equal bins; null for written answers"
    )
    cross_entropy: float | None = Field(
        None, description="of the gold answer's tokens, nats a token; null for labels"
    )
    verbalizer_mass: float | None = Field(
        description="mean probability that falls on all surface forms of all labels; null for a classification head"
    )
    confusion: dict[str, dict[str, int]] = Field(
        description="gold label -> predicted label -> rows; every label occurs in both places; empty for written answers"
    )
    fidelity: Closeness | None = Field(description="to the teacher; null without one")
    single_contexts: list[SingleContext] = Field(
        description="each set of demonstrations alone, where several are averaged"
    )


class Checkpoint(Strict):
    """A student before or in the middle of its training, judged on rows that are neither learnt from nor reported on."""

    step: int = Field(description="0: before training, never kept")
    accuracy: Proportion
    cross_entropy: float = Field(description="of the gold answers' tokens, nats a token")
    fidelity: Closeness | None = Field(description="to the teacher; null without one")
    kept: bool = Field(description="whether this is the student that was judged in the end")


class CellTraining(Strict):
    """How the student of a cell was trained."""

    rows: int
    steps: int
    trainable_parameters: int
    trainable_share: float = Field(description="of all the student's parameters")
    loss: list[tuple[int, float]] = Field(
        description="(step, mean loss a row, or a token, since the point before)"
    )
    checkpoints: list[Checkpoint] = Field(
        [], description="of written answers, where evaluation.at_steps asks for them"
    )


class Cell(JsonFile):
    """The whole of `cell.json`."""

    lies_in: ClassVar[str] = "study"

    schema_version: Literal[1] = 1
    instil_version: str
    name: str = Field(description="of the cell's folder")
    varied: dict[str, Any] = Field(description="the grid's keys with this cell's values")
    recipe: dict[str, Any] = Field(description="all settings of the cell")
    model: str
    teacher_model: str | None = Field(description="null: no teacher, or the student's own weights")
    dtype: str
    task: str
    labels: list[str] = Field(description="empty where answers are written")
    method: MethodName
    tuning: str | None = Field(description="full, lora or bitfit; null where nothing is trained")
    k: int = Field(description="demonstrations a context; 0 where the method reads none")
    seed: int
    prompt_tokens_mean: float = Field(description="of the prompt that a query sends")
    scores: list[SetScore]
    teacher: list[SetScore] = Field(
        description="what its teacher scored on the same rows; empty without one"
    )
    training: CellTraining | None
    phases: dict[Phase, PhaseCost]
    reused: list[Phase] = Field(
        description="phases whose work another cell had done; their cost is the one measured there"
    )
    left_out: int = Field(
        0, description="training rows that were not used because they are evaluation rows, too"
    )
    shipped_bytes: int = Field(description="size of the trained weights that a user must be given")
    drift: float | None = Field(
        None,
        description="KL(base || student) on unrelated text, nats a token; null where it is not measured",
    )


class Failure(JsonFile):
    """`failure.json`: why a cell came to nothing."""

    lies_in: ClassVar[str] = "study"

    name: str
    varied: dict[str, Any]
    error: str = Field(
        description="the kind of error, for example `UnknownModelError`, or `killed`"
    )
    message: str
    seconds: float


class CellPrediction(Strict):
    """One line of a cell's `predictions.jsonl`: one evaluation row."""

    set: str
    row: int = Field(description="number in its set; the same text in all cells of one seed")
    input: str
    expected: str = Field(description="gold label, or what the gold answer comes to")
    predicted: str = Field(
        description="label, or what the written answer comes to; right answers are spelt as the gold one"
    )
    probabilities: dict[str, float] = Field(
        description="label -> probability, summing to 1; empty for written answers"
    )
    written: str | None = Field(None, description="the whole answer, where answers are written")
