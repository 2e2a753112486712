"""Kept texts in every batch: text on which the student is trained to stay as its base is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instil.system import processes
from instil.training.collation import Collator, Lesson


@dataclass(frozen=True)
class Kept:
    """Kept texts with the base's predictions.

    Attributes:
        rows: The texts. Their targets are for forward KL.
        per_batch: How many of them are added to each batch.
        weight: Weight of their mean loss. The mean loss of the batch's own rows has weight 1.
        seed: Seed of the draw.
    """

    rows: Sequence[Lesson]
    per_batch: int
    weight: float
    seed: int


class KeepingCollator:
    """Adds kept texts to the batches of another collator.

    Which texts are drawn depends on the seed and on the numbers of the batch's rows. So all
    processes draw the same texts, and a training that is resumed draws what it would have drawn.

    Args:
        lessons: Makes the batches of the rows.
        texts: Makes parts of kept texts alone; None: they share the parts of the rows.
        kept: The texts.
    """

    def __init__(self, lessons: Collator, texts: Collator | None, kept: Kept) -> None:
        self.lessons, self.texts, self.kept = lessons, texts, kept

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The parts of this process's share of a batch, and of the texts drawn for the batch."""
        rows, count = self.kept.rows, min(self.kept.per_batch, len(self.kept.rows))
        generator = random.Random(f"{self.kept.seed} {[*numbers]}")
        drawn = [rows[number] for number in generator.sample(range(len(rows)), count)]
        weight = self.kept.weight / sum(row.terms for row in drawn)
        if self.texts is None and processes.count() == 1:
            return self.lessons(numbers, drawn, weight)
        # All processes make as many passes: one without a text reads a text with weight 0.
        mine = drawn[processes.rank() :: processes.count()]
        texts = (self.texts or self.lessons).alone(mine or drawn[:1], weight if mine else 0.0)
        batch = self.lessons(numbers)
        return {**batch, "parts": [*batch["parts"], *texts]}
