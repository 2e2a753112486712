"""Computes the teacher's targets for completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from instil.models.load import LanguageModel
from instil.models.reader import COMPLETIONS, Packing, Pass, Reader
from instil.prompts.pair import AlignedPair, teacher_prompts
from instil.system.progress import Advance
from instil.targets.draws import points, sparse
from instil.targets.prediction import Targets
from instil.targets.selection import Selection


@dataclass(frozen=True)
class Scorer:
    """Computes the targets for the completions of pairs.

    Attributes:
        reader: Reads the pairs' teacher prompts; an adapter on its model must be off.
        pairs: All pairs that may be scored.
        vocabulary: Size of the student's output; further outputs of the teacher get no probability.
        kept: Which outcomes per token are stored.
        temperature: Temperature of the targets.
        advance: Called with the progress.
    """

    reader: Reader
    pairs: Sequence[AlignedPair]
    vocabulary: int
    kept: Selection
    temperature: float
    advance: Advance

    @classmethod
    def of(
        cls,
        teacher: LanguageModel,
        pairs: Sequence[AlignedPair],
        *,
        vocabulary: int,
        kept: Selection,
        temperature: float,
        batch_size: int,
        advance: Advance,
        packing: Packing | None = COMPLETIONS,
    ) -> Scorer:
        """Makes a scorer, without reading anything yet.

        Args:
            teacher: The model; an adapter on it must be off.
            pairs: All pairs that may be scored.
            vocabulary: See the attribute.
            kept: See the attribute.
            temperature: See the attribute.
            batch_size: Maximum pairs in a padded forward pass.
            advance: Called with the progress.
            packing: When to pack several pairs into one row.
        """
        reader = Reader(
            teacher,
            teacher_prompts(pairs),
            [[pair.completion] for pair in pairs],
            packing=packing,
            batch_size=batch_size,
        )
        return cls(reader, pairs, vocabulary, kept, temperature, advance)

    def score(self, numbers: Sequence[int]) -> Iterator[tuple[int, Targets]]:
        """Yields the numbers of pairs with the targets for their completions, in any order."""
        # `map` keeps no reference to a finished pass while the next runs, which saves memory.
        for rows, targets in map(self._targets, self.reader.read(numbers)):
            yield from zip(rows, targets, strict=True)

    @torch.inference_mode()
    def _targets(self, done: Pass) -> tuple[list[int], list[Targets]]:
        """The numbers of the pass's pairs, and the targets of each."""
        pairs = [self.pairs[number] for number in done.rows]
        points_N = torch.cat([points(pair.teacher_prompt, pair.completion) for pair in pairs])
        targets = Targets.cat(
            [
                sparse(
                    logits_CV[:, : self.vocabulary],
                    points_C,
                    kept=self.kept,
                    temperature=self.temperature,
                )
                for logits_CV, points_C in zip(
                    done.logits.chunks(), torch.split(points_N, done.logits.positions), strict=True
                )
            ]
        )
        self.advance(len(done.rows), done.prefix + done.batch.tokens)
        return done.rows, targets.split([len(pair.completion) for pair in pairs])
