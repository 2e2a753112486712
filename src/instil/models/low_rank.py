"""A linear layer and its low-rank adapter in one operation.

PEFT runs the adapter as separate layers. Their output is as large as the layer's own. It is
computed, scaled and added, each in a separate pass over memory, and the backward pass does the
same. Here the adapter's second product is added in place to the layer's output, in the dtype that
the layer computes in, without a temporary result.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor
from torch.nn.functional import linear
from typing_extensions import override


def install(network: torch.nn.Module) -> None:
    """Makes every plain linear layer with an adapter run in one operation, and no other layer."""
    for module in network.modules():
        if type(module) is lora.Linear and type(module.get_base_layer()) is torch.nn.Linear:
            module.__class__ = LowRankLinear


class LowRankLinear(lora.Linear):
    """PEFT's layer, run in one operation if exactly one plain, unmerged adapter is active."""

    @override
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Computes what PEFT's layer computes, for inputs (..., D).

        The adapter's weights are cast to the dtype that the layer computes in.
        """
        layer = self.get_base_layer()
        names = [name for name in self.active_adapters if name in self.lora_A]
        single = (
            len(names) == 1 and names[0] not in self.lora_variant and not self.lora_bias[names[0]]
        )
        off = self.disable_adapters or self.merged or layer.weight.requires_grad
        # Autocast chooses its own dtypes. In float16 an adapter's small gradients would vanish, so
        # PEFT's forward pass is used, which computes the adapter in float32.
        cast_elsewhere = torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float16
        if args or kwargs or off or cast_elsewhere or not single:
            return super().forward(x, *args, **kwargs)
        (name,) = names
        dropout = self.lora_dropout[name]
        drops = isinstance(dropout, torch.nn.Dropout) and dropout.training
        made: Tensor = _Adapted.apply(  # type: ignore[no-untyped-call]
            x,
            dropout(x) if drops else None,
            layer.weight,
            layer.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )
        return made


class _Adapted(torch.autograd.Function):
    """x W' + b + s (z A') B'; z is x, or x after dropout. Has gradients of x, z, A and B."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scaling: float,
    ) -> Tensor:
        ctx.scaling, ctx.dropped, ctx.dtype = scaling, dropped is not None, down.dtype
        shape = (*x.shape[:-1], len(weight))
        x_ND = x.reshape(-1, x.shape[-1])
        z_ND = x_ND if dropped is None else dropped.reshape(x_ND.shape)
        down, up = down.to(x.dtype), up.to(x.dtype)
        inner_NR = z_ND @ down.t()
        made_NE = linear(x_ND, weight, bias).addmm_(inner_NR, up.t(), alpha=scaling)
        ctx.save_for_backward(z_ND, inner_NR, weight, down, up)
        # A view of the output could not be changed in place, as some models do.
        reshaped: Tensor = torch.ops.aten._unsafe_view(made_NE, shape)
        return reshaped

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z_ND, inner_NR, weight, down, up = ctx.saved_tensors
        shape = (*gradients[0].shape[:-1], z_ND.shape[-1])
        at_made_NE = gradients[0].reshape(len(z_ND), -1)
        at_inner_NR = (at_made_NE @ up).mul_(ctx.scaling)
        at_up_RE = (inner_NR.t() @ at_made_NE).mul_(ctx.scaling)
        at_down = at_inner_NR.t() @ z_ND
        at_x = at_dropped = None
        if ctx.needs_input_grad[0]:
            at_x = at_made_NE @ weight
            if not ctx.dropped:
                at_x.addmm_(at_inner_NR, down)
            at_x = at_x.view(shape)
        if ctx.dropped:
            at_dropped = (at_inner_NR @ down).view(shape)
        at_up = at_up_RE.t().to(ctx.dtype)
        return at_x, at_dropped, None, None, at_down.to(ctx.dtype), at_up, None
