"""The teacher: scores completions under the context, reading the context once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from instil.models.attention import reads_bounds
from instil.models.batch import collate, pack
from instil.models.cache import SharedPrefix
from instil.models.forward import completion_logits, read
from instil.models.load import LanguageModel
from instil.models.packing import keeps_apart, packs
from instil.prompts.pair import AlignedPair
from instil.system.progress import Advance
from instil.targets.draws import points, sparse
from instil.targets.prediction import Targets
from instil.targets.selection import Selection


@dataclass(frozen=True)
class Scorer:
    """A teacher that has read what all its prompts begin with.

    Attributes:
        teacher: The model; an adapter on it must be off.
        pairs: All that it may be asked to score.
        prefix: What their prompts share.
        packed: Whether it reads several pairs in one row.
        vocabulary: Size of the student's output: a teacher's padding beyond it gets no probability.
        kept: What of a token's outcomes is kept.
        temperature: Of the targets.
        batch_size: Most rows in a forward pass, where they are not packed.
        advance: Told of progress.
    """

    teacher: LanguageModel
    pairs: Sequence[AlignedPair]
    prefix: SharedPrefix
    packed: bool
    vocabulary: int
    kept: Selection
    temperature: float
    batch_size: int
    advance: Advance

    @classmethod
    @torch.inference_mode()
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
    ) -> Scorer:
        """Reads what the prompts share."""
        prefix = SharedPrefix(teacher.network, [pair.teacher_prompt for pair in pairs])
        advance(0, prefix.length)
        ends = ((p.teacher_prompt, p.completion) for p in (pairs[0], pairs[-1]))
        packed = reads_bounds(teacher.network) and prefix.can_lend
        return cls(
            teacher=teacher,
            pairs=pairs,
            prefix=prefix,
            packed=packed and keeps_apart(teacher.network, *ends),
            vocabulary=vocabulary,
            kept=kept,
            temperature=temperature,
            batch_size=batch_size,
            advance=advance,
        )

    @torch.inference_mode()
    def score(self, numbers: Sequence[int]) -> Iterator[tuple[int, Targets]]:
        """Yields pairs, by their numbers, with the targets for their completions, in any order."""
        chosen = [self.pairs[number] for number in numbers]
        shared, scored = self.prefix.length, [len(pair.completion) for pair in chosen]
        own = [len(p.teacher_prompt) - shared + n for p, n in zip(chosen, scored, strict=True)]
        if self.packed:
            groups = packs(own)
        else:
            lengths = [shared + n for n in own]
            groups = self.prefix.batches(lengths, batch_size=self.batch_size, scored=scored)
        for group in groups:
            completions = [chosen[i].completion for i in group]
            targets = self._targets([chosen[i].teacher_prompt for i in group], completions)
            parts = targets.split([len(completion) for completion in completions])
            self.advance(len(group), sum(own[i] - 1 for i in group))
            yield from zip([numbers[i] for i in group], parts, strict=True)

    def _targets(self, prompts: list[list[int]], completions: list[list[int]]) -> Targets:
        shared, network = self.prefix.length, self.teacher.network
        if self.packed:
            batch = pack(prompts, completions, prefix=shared, masked=False)
            with self.prefix.lent() as cache:
                reading = read(network, batch, cache=cache)
        else:
            batch = collate(prompts, completions, pad_id=self.teacher.pad_id, prefix=shared)
            reading = read(network, batch, cache=self.prefix.cache(len(prompts)))
        if reading.head is None:
            cache = self.prefix.cache(len(prompts))
            batch = collate(prompts, completions, pad_id=self.teacher.pad_id, prefix=shared)
            logits: Iterable[torch.Tensor] = [completion_logits(network, batch, cache=cache)]
        else:
            logits = reading.logits()
        points_N = torch.cat([points(*pair) for pair in zip(prompts, completions, strict=True)])
        return Targets.cat(list(self._kept(logits, points_N)))

    def _kept(self, logits: Iterable[torch.Tensor], points_N: torch.Tensor) -> Iterator[Targets]:
        start = 0
        for logits_CV in logits:
            known_CV, end = logits_CV[:, : self.vocabulary], start + len(logits_CV)
            yield sparse(
                known_CV, points_N[start:end], kept=self.kept, temperature=self.temperature
            )
            start = end
