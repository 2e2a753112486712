"""A loss over logits that are never there all at once.

The logits of N completion tokens over V words take N x V numbers, several times over while a loss and its gradient are
computed; the hidden states that they come from take N x D, some hundred times less. So the output layer is run on a few
positions at a time, and each chunk's gradient is taken back to the hidden states at once, before the next chunk's logits
are made: nothing is computed twice, and what is held does not grow with the length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

# Logits of one chunk, positions x vocabulary: 34 MB in float32, and twice that while their gradient is taken. Above 32 MiB the C
# library maps each block by itself and gives it back; smaller ones leave holes, and take up to half as much again.
MOST_LOGITS = 8_600_000


@dataclass(frozen=True)
class Head:
    """A model's output layer, as its own forward pass runs it.

    Attributes:
        layer: Hidden states (N, D) to logits (N, V).
        vocabulary: V.
        autocast: What the model computes in where that is not the weights' dtype; None: the weights' own.
    """

    layer: torch.nn.Module
    vocabulary: int
    autocast: torch.dtype | None

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """Logits, float32."""
        with torch.autocast(
            hidden_ND.device.type, dtype=self.autocast, enabled=self.autocast is not None
        ):
            logits_NV: Tensor = self.layer(hidden_ND)
        return logits_NV.float()

    @property
    def positions(self) -> int:
        """Positions of one chunk."""
        return max(1, MOST_LOGITS // self.vocabulary)

    @property
    def trained(self) -> list[Tensor]:
        """Its weights that training changes."""
        return [p for p in self.layer.parameters() if p.requires_grad]


def chunked_sum(
    hidden_ND: Tensor, head: Head, loss: Callable[[Tensor, int, int], Tensor]
) -> Tensor:
    """The sum of a loss over positions, a chunk of them at a time.

    Args:
        hidden_ND: What the output layer reads.
        head: The output layer.
        loss: Given logits and the first and last + 1 of their positions, the loss of each of them.
    """
    summed: Tensor = _ChunkedSum.apply(hidden_ND, head, loss, *head.trained)  # type: ignore[no-untyped-call]
    return summed


class _ChunkedSum(torch.autograd.Function):
    """Computes the gradient with the value; backward has only to scale it."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head: Head,
        loss: Callable[[Tensor, int, int], Tensor],
        *trained: Tensor,
    ) -> Tensor:
        positions = head.positions
        total = torch.zeros((), device=hidden_ND.device)
        wanted = any(ctx.needs_input_grad)
        made_ND = torch.zeros_like(hidden_ND) if wanted else None
        made = [torch.zeros_like(weight) for weight in trained]
        for start in range(0, len(hidden_ND), positions):
            piece_ND = hidden_ND[start : start + positions].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                summed = loss(head(piece_ND), start, start + len(piece_ND)).sum()
            total += summed.detach()
            if made_ND is not None:
                first, *others = torch.autograd.grad(summed, [piece_ND, *trained])
                made_ND[start : start + positions] = first
                for kept, gradient in zip(made, others, strict=True):
                    kept += gradient
        ctx.save_for_backward(made_ND, *made)
        return total

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        made: Sequence[Tensor] = ctx.saved_tensors
        given = gradients[0]
        # Not in bfloat16, in which a third is off by 0.2 %, and all of them with it.
        first, *others = (
            (given * one.to(torch.promote_types(one.dtype, given.dtype))).to(one.dtype)
            for one in made
        )
        return (first, None, None, *others)
