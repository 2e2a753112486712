"""The teacher's targets for completions, made of what it reads under the context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from instil.models.load import LanguageModel
from instil.models.reader import COMPLETIONS, Packing, Pass, Reader
from instil.prompts.pair import AlignedPair
from instil.system.progress import Advance
from instil.targets.draws import points, sparse
from instil.targets.prediction import Targets
from instil.targets.selection import Selection


@dataclass(frozen=True)
class Scorer:
    """Makes targets for the completions of pairs.

    Attributes:
        reader: Reads the pairs' teacher prompts; an adapter on its model must be off.
        pairs: All that may be asked for.
        vocabulary: Size of the student's output: a teacher's padding beyond it gets no probability.
        kept: Which outcomes of a token are kept.
        temperature: Of the targets.
        advance: Told of progress.
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
        """A scorer that has read nothing yet.

        Args:
            teacher: The model; an adapter on it must be off.
            pairs: All that may be asked for.
            vocabulary: As the attribute.
            kept: As the attribute.
            temperature: As the attribute.
            batch_size: Most pairs in a padded forward pass.
            advance: Told of progress.
            packing: When several pairs are packed into one row.
        """
        reader = Reader(
            teacher,
            [pair.teacher_prompt for pair in pairs],
            [[pair.completion] for pair in pairs],
            packing=packing,
            batch_size=batch_size,
        )
        return cls(reader, pairs, vocabulary, kept, temperature, advance)

    def score(self, numbers: Sequence[int]) -> Iterator[tuple[int, Targets]]:
        """Yields pairs, by their numbers, with the targets for their completions, in any order."""
        # `map` holds nothing of one pass while the next is run.
        for rows, targets in map(self._targets, self.reader.read(numbers)):
            yield from zip(rows, targets, strict=True)

    @torch.inference_mode()
    def _targets(self, one: Pass) -> tuple[list[int], list[Targets]]:
        """The targets of each of the pass's pairs."""
        pairs = [self.pairs[number] for number in one.rows]
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
                    one.logits.chunks(), torch.split(points_N, one.logits.positions), strict=True
                )
            ]
        )
        self.advance(len(one.rows), one.prefix + one.batch.tokens)
        return one.rows, targets.split([len(pair.completion) for pair in pairs])
