"""Targets from the likeliest outcomes that a server tells of each token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from instil.targets.draws import trim
from instil.targets.prediction import LOG_ZERO, Targets
from instil.targets.selection import Selection

ROUNDING = 1e-6
"""A tail of less is no tail, but the rounding of the outcomes."""
Step = Sequence[tuple[int, float]]
"""Outcomes of one token: their ids, and their log-probabilities in nats, at temperature 1."""


def told_targets(steps: Sequence[Step], kept: Selection, vocabulary: int) -> Targets:
    """Targets from the likeliest outcomes of N tokens. The tail is one outcome.

    Outcomes beyond the vocabulary get no probability, as in this process.

    Args:
        steps: The outcomes of each token, in any order. Of two with the same id, the likelier one
            counts.
        kept: Which outcomes are kept.
        vocabulary: Number of the student's outcomes.
    """
    best = [_likeliest(step, vocabulary)[: kept.top_k] for step in steps]
    widest = max(map(len, best))
    ids_NK = torch.zeros(len(best), widest, dtype=torch.long)
    logprobs_NK = torch.full((len(best), widest), LOG_ZERO)
    kept_NK = torch.zeros(len(best), widest, dtype=torch.bool)
    for number, step in enumerate(best):
        count = len(step)
        ids_NK[number, :count] = torch.tensor([token for token, _ in step], dtype=torch.long)
        logprobs_NK[number, :count] = torch.tensor([logprob for _, logprob in step])
        kept_NK[number, :count] = True
    mass_N = logprobs_NK.double().exp().sum(-1)
    mass_N = mass_N.masked_fill(mass_N > 1 - ROUNDING, 1.0)
    whole = Targets(
        ids_NK=ids_NK,
        logprobs_NK=logprobs_NK.clamp(min=LOG_ZERO),
        log_tail_N=torch.log1p(-mass_N).float().clamp(min=LOG_ZERO),
        logsumexp_N=torch.zeros(len(best)),  # the server tells no logits
        temperature=1.0,
        kept_NK=kept_NK,
    )
    return trim(whole, kept)


def _likeliest(step: Step, vocabulary: int) -> list[tuple[int, float]]:
    """The outcomes of a vocabulary, likeliest first; what others have is divided among all of these."""
    known: dict[int, float] = {}
    for token, logprob in sorted(step, key=lambda one: -one[1]):
        known.setdefault(token, logprob)
    lost = sum(math.exp(logprob) for token, logprob in known.items() if token >= vocabulary)
    more = -math.log1p(-min(lost, 1 - 1e-9)) if lost else 0.0
    return [(token, logprob + more) for token, logprob in known.items() if token < vocabulary]
