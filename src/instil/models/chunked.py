"""A loss over logits that are never all in memory at once.

The logits of N completion tokens over a vocabulary of V are N x V numbers. A loss and its gradient
need several copies of them. The hidden states before the output layer are only N x D numbers, some
hundred times fewer. So the output layer runs on a few positions at a time. The gradient of each
chunk is taken back to the hidden states before the logits of the next chunk are computed. Nothing
is computed twice, and the memory for logits does not grow with the length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

# Logits of one chunk, positions x vocabulary: 34 MB in float32, and twice that while their gradient
# is computed. The C library maps each block above 32 MiB separately and gives it back when it is
# freed. Smaller blocks leave holes, and take up to half as much memory again.
MOST_LOGITS = 8_600_000


@dataclass(frozen=True)
class Head:
    """A model's output layer, run as in the model's own forward pass.

    Attributes:
        layer: Maps hidden states (N, D) to numbers of shape (N, V).
        vocabulary: V.
        autocast: The dtype that the model computes in; None: the weights' own dtype.
        scale: The model multiplies these numbers by it.
        cap: The model then keeps them between -cap and cap, by a hyperbolic tangent; None: no cap.
    """

    layer: torch.nn.Module
    vocabulary: int
    autocast: torch.dtype | None
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """Logits, float32."""
        with torch.autocast(
            hidden_ND.device.type, dtype=self.autocast, enabled=self.autocast is not None
        ):
            logits_NV: Tensor = self.layer(hidden_ND)
            if self.scale != 1:
                logits_NV = logits_NV * self.scale
            if self.cap is not None:
                logits_NV = torch.tanh(logits_NV / self.cap) * self.cap
        return logits_NV.float()

    @property
    def positions(self) -> int:
        """Number of positions in one chunk."""
        return max(1, MOST_LOGITS // self.vocabulary)

    @property
    def trained(self) -> list[Tensor]:
        """The layer's trainable weights."""
        return [p for p in self.layer.parameters() if p.requires_grad]


def chunked_sum(
    hidden_ND: Tensor, head: Head, loss: Callable[[Tensor, int, int], Tensor]
) -> Tensor:
    """The sum of a loss over positions, computed in chunks.

    Args:
        hidden_ND: Input of the output layer.
        head: The output layer.
        loss: Takes logits, their first position and their last position + 1. Returns the loss of
            each position.
    """
    summed: Tensor = _ChunkedSum.apply(hidden_ND, head, loss, *head.trained)  # type: ignore[no-untyped-call]
    return summed


def chunked(hidden_ND: Tensor, head: Head, keep: Callable[[Tensor, int], Tensor]) -> Tensor:
    """What is kept of the logits of each position, computed in chunks.

    The backward pass computes the logits of each chunk again.

    Args:
        hidden_ND: Input of the output layer.
        head: The output layer.
        keep: Takes the logits of a chunk and the number of its first position. Returns some numbers
            for each of its positions.
    """

    def of(piece_CD: Tensor, start: int) -> Tensor:
        return keep(head(piece_CD), start)

    kept = [
        checkpoint(of, piece_CD, number * head.positions, use_reentrant=False)
        for number, piece_CD in enumerate(torch.split(hidden_ND, head.positions))
    ]
    return torch.cat(kept)


class _ChunkedSum(torch.autograd.Function):
    """Computes the gradient together with the value. The backward pass only scales it."""

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
                for total_gradient, gradient in zip(made, others, strict=True):
                    total_gradient += gradient
        ctx.save_for_backward(made_ND, *made)
        return total

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        made: Sequence[Tensor] = ctx.saved_tensors
        scale = gradients[0]
        # Not in bfloat16: there a scale of 1/3 is off by 0.2 %, and so would be every gradient.
        first, *others = (
            (scale * grad.to(torch.promote_types(grad.dtype, scale.dtype))).to(grad.dtype)
            for grad in made
        )
        return (first, None, None, *others)
