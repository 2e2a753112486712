"""The teacher's targets: likely tokens with their log-probabilities, and a summary of the others.

The summary is the total mass of all other tokens, or some tokens drawn from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

LOG_ZERO = -1e4
"""Replaces the log of a probability of 0: its exp is 0, and 0 times it is 0, not NaN."""


@dataclass(frozen=True)
class Targets:
    """The teacher's prediction of N completion tokens.

    If a token keeps fewer than K outcomes, its row ends in padding: any id, the log-probability
    `LOG_ZERO`, and `kept_NK` False.

    Attributes:
        ids_NK: The K likeliest tokens, likeliest first. Where `excess_N` is above 0, the drawn
            tokens are among them.
        logprobs_NK: Their log-probabilities at `temperature`, nats. For a drawn token, the log of
            its share of the tail.
        log_tail_N: Log of the probability of all other tokens, nats; `LOG_ZERO` where drawn tokens
            share it.
        logsumexp_N: Log-sum-exp of the logits over the temperature. The raw logits of tokens that
            were not drawn are `temperature * (logprobs + logsumexp)`.
        temperature: Temperature of the softmax.
        kept_NK: False for padding, bool; None: there is no padding.
        excess_N: Where outcomes were drawn from the tail (`instil.targets.draws`): the KL from
            these targets to the teacher's full prediction, nats; 0 elsewhere. None: no token has
            draws.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    log_tail_N: Tensor
    logsumexp_N: Tensor
    temperature: float
    kept_NK: Tensor | None = None
    excess_N: Tensor | None = None

    @classmethod
    def of(cls, logits_NV: Tensor, *, top_k: int, temperature: float) -> Targets:
        """Keeps the `top_k` likeliest tokens of each row; all tokens of a smaller vocabulary."""
        scaled_NV = logits_NV.float() / temperature  # the only copy, changed in place below
        values_NK, ids_NK = scaled_NV.topk(min(top_k, scaled_NV.shape[-1]))
        outside_NV = scaled_NV.scatter_(-1, ids_NK, float("-inf"))
        # The clamp makes it finite, even without a tail.
        most_N1 = outside_NV.amax(-1, keepdim=True).clamp(min=torch.finfo().min)
        tail_N = most_N1[:, 0] + outside_NV.sub_(most_N1).exp_().sum(-1).log()
        logsumexp_N = torch.logaddexp(values_NK.logsumexp(-1), tail_N)
        return cls(
            ids_NK=ids_NK,
            logprobs_NK=(values_NK - logsumexp_N[:, None]).clamp(min=LOG_ZERO),
            log_tail_N=(tail_N - logsumexp_N).clamp(min=LOG_ZERO),
            logsumexp_N=logsumexp_N,
            temperature=temperature,
        )

    def part(self, start: int, end: int) -> Targets:
        """The targets of the tokens from `start` up to `end`."""
        return Targets(
            self.ids_NK[start:end],
            self.logprobs_NK[start:end],
            self.log_tail_N[start:end],
            self.logsumexp_N[start:end],
            self.temperature,
            None if self.kept_NK is None else self.kept_NK[start:end],
            None if self.excess_N is None else self.excess_N[start:end],
        )

    def split(self, lengths: Sequence[int]) -> list[Targets]:
        """Cuts the N tokens into parts of the given lengths."""
        return [self.part(start, end) for start, end in pairwise([0, *accumulate(lengths)])]

    @classmethod
    def cat(cls, parts: Sequence[Targets]) -> Targets:
        """Joins the targets of several rows; rows with fewer outcomes are padded."""
        widest = max(part.ids_NK.shape[1] for part in parts)
        wide = [part._padded(widest) for part in parts]
        kept = None
        if any(part.kept_NK is not None for part in wide):
            kept = torch.cat([part.kept for part in wide])
        excess = None
        if any(part.excess_N is not None for part in wide):
            excess = torch.cat([part.excess for part in wide])
        return cls(
            ids_NK=torch.cat([part.ids_NK for part in wide]),
            logprobs_NK=torch.cat([part.logprobs_NK for part in wide]),
            log_tail_N=torch.cat([part.log_tail_N for part in wide]),
            logsumexp_N=torch.cat([part.logsumexp_N for part in wide]),
            temperature=parts[0].temperature,
            kept_NK=kept,
            excess_N=excess,
        )

    @property
    def kept(self) -> Tensor:
        """`kept_NK`; all True if it is None."""
        if self.kept_NK is not None:
            return self.kept_NK
        return torch.ones_like(self.ids_NK, dtype=torch.bool)

    @property
    def excess(self) -> Tensor:
        """`excess_N`; zeros if it is None."""
        if self.excess_N is not None:
            return self.excess_N
        return torch.zeros_like(self.log_tail_N)

    def _padded(self, width: int) -> Targets:
        """The same targets with `width` entries per token."""
        more = width - self.ids_NK.shape[1]
        if not more:
            return self
        return replace(
            self,
            ids_NK=pad(self.ids_NK, (0, more)),
            logprobs_NK=pad(self.logprobs_NK, (0, more), value=LOG_ZERO),
            kept_NK=pad(self.kept, (0, more)),
        )

    def to(self, device: torch.device) -> Targets:
        """The same targets on another device."""
        return Targets(
            self.ids_NK.to(device),
            self.logprobs_NK.to(device),
            self.log_tail_N.to(device),
            self.logsumexp_N.to(device),
            self.temperature,
            None if self.kept_NK is None else self.kept_NK.to(device),
            None if self.excess_N is None else self.excess_N.to(device),
        )


@dataclass(frozen=True)
class TargetRow:
    """One pair for training: the student's prompt, the completion and the teacher's targets."""

    row: int
    student_prompt: list[int]
    completion: list[int]
    targets: Targets | None
    teacher_prompt: list[int] | None = None

    @property
    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """What the student reads: one prompt with its completion."""
        return [(self.student_prompt, self.completion)]

    @property
    def terms(self) -> int:
        """Number of terms that the row adds to the loss: one per completion token."""
        return len(self.completion)
