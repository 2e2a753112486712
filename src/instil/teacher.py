"""The teacher: scores completions under the context, reading the context once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from instil.alignment import AlignedPair, collate
from instil.cache import SharedPrefix
from instil.model import LanguageModel, completion_logits
from instil.progress import Advance
from instil.targets import Targets


@torch.inference_mode()
def score(
    teacher: LanguageModel,
    pairs: Sequence[AlignedPair],
    *,
    vocabulary: int,
    top_k: int,
    temperature: float,
    batch_size: int,
    advance: Advance,
) -> Iterator[tuple[AlignedPair, Targets]]:
    """Yields each pair with the teacher's targets for its completion, in no particular order.

    Args:
        teacher: The model; an adapter on it must be off.
        pairs: What to score.
        vocabulary: Size of the student's output: a teacher's padding beyond it gets no probability.
        top_k: Log-probabilities kept a token.
        temperature: Of the targets.
        batch_size: Most rows in a forward pass.
        advance: Told of progress.
    """
    prefix = SharedPrefix(teacher.network, [pair.teacher_prompt for pair in pairs])
    advance(0, prefix.length)
    scored = [len(pair.completion) for pair in pairs]
    lengths = [len(pair.teacher_prompt) + n for pair, n in zip(pairs, scored, strict=True)]
    for numbers in prefix.batches(lengths, batch_size=batch_size, scored=scored):
        chosen = [pairs[i] for i in numbers]
        completions = [pair.completion for pair in chosen]
        batch = collate(
            [pair.teacher_prompt for pair in chosen],
            completions,
            pad_id=teacher.pad_id,
            prefix=prefix.length,
        )
        logits_NV = completion_logits(teacher.network, batch, cache=prefix.cache(len(chosen)))
        targets = Targets.of(logits_NV[:, :vocabulary], top_k=top_k, temperature=temperature)
        targets = targets.to(torch.device("cpu"))
        advance(len(chosen), batch.tokens)
        yield from zip(chosen, targets.split([len(c) for c in completions]), strict=True)
