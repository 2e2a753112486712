"""What writes and scores for a teacher, or answers for a student, in another process.

Without an engine, the models of the run do this work themselves. A target store, a loss, a gate or a
report does not know which of them did it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from instil.models.generate import Decoding, Ending, Generated
from instil.models.load import LanguageModel
from instil.recipe.sections import Engine as Settings
from instil.system.progress import Display
from instil.targets.prediction import Targets
from instil.targets.selection import Selection


class Engine(Protocol):
    """Reads and writes token ids with a model that it holds."""

    @property
    def name(self) -> str:
        """Its name, for a reader."""

    @property
    def without_adapter(self) -> Engine:
        """The same engine, with the model as it is without an adapter."""

    def completed(
        self,
        prompts: Sequence[list[int]],
        ending: Ending,
        decoding: Decoding,
        *,
        numbers: Sequence[int] | None = None,
        known: Collection[int] = (),
    ) -> Iterator[tuple[list[int], list[Generated], int]]:
        """Completes prompts; see `instil.models.generate.completed`."""

    def scored(
        self, pairs: Sequence[tuple[list[int], list[int]]], kept: Selection, *, vocabulary: int
    ) -> Iterator[tuple[int, Targets]]:
        """Predicts given completions.

        The tail is one outcome: an engine tells the likeliest outcomes only, so none can be drawn from
        the others.

        Args:
            pairs: Prompts and completions, in token ids.
            kept: Which outcomes of a token are kept.
            vocabulary: Number of the student's outcomes; others get no probability.

        Yields:
            Numbers of pairs with the predictions of their completions, in any order.
        """


@dataclass(frozen=True)
class Wanted:
    """What an engine is started with.

    Attributes:
        settings: Its settings.
        model: The model that it serves. Only its name, folder, type and tokens are read.
        outcomes: Most outcomes of a token that it must tell.
        adapter: Folder of an adapter that it serves; None: the model without one.
        prompts: Some prompts of the run, in token ids, on which it is compared with the model.
        display: Shows progress.
    """

    settings: Settings
    model: LanguageModel
    outcomes: int
    adapter: Path | None
    prompts: Sequence[list[int]]
    display: Display
