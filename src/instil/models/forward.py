"""A forward pass that computes logits only where they are needed, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from instil.models import attention
from instil.models.chunked import Head


def completion_logits(network: Any, batch: Any, *, cache: Any = None) -> Tensor:
    """Logits (N, V), float32, for exactly the batch's N completion tokens.

    Args:
        network: The model; it may be wrapped for several processes.
        batch: A `Batch`.
        cache: Keys and values of the shared prefix, which is not in the batch.
    """
    logits_NV: Tensor = _forward(network, batch, cache).logits
    return logits_NV.float()


@dataclass(frozen=True)
class Reading:
    """The result of a forward pass before the output layer.

    Attributes:
        hidden_ND: Input of the output layer at the N positions that predict a completion token.
        head: The output layer; None if the model changes the logits further, such as capping them.
        layers: Hidden states at the same positions: the output of the embeddings, then of each
            layer. Empty if they were not requested.
    """

    hidden_ND: Tensor
    head: Head | None
    layers: list[Tensor]


def read(network: Any, batch: Any, *, cache: Any = None, layers: bool = False) -> Reading:
    """Runs a model up to its output layer.

    Args:
        network: The model; it may be wrapped for several processes.
        batch: A `Batch`.
        cache: Keys and values of the shared prefix, which is not in the batch.
        layers: Whether to return the hidden states of every layer.
    """
    inner = getattr(network, "module", network)
    layer, device = output_embeddings(inner), inner.device.type
    seen: list[tuple[Tensor, torch.dtype | None]] = []

    def keep_first(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        seen.append((args[0], cast))
        return (args[0][:1], *args[1:])

    hook = layer.register_forward_pre_hook(keep_first)
    try:
        output = _forward(network, batch, cache, output_hidden_states=layers)
    finally:
        hook.remove()
    hidden_ND, cast = seen[0]
    first_V = output.logits[0].detach().float()
    head = Head(layer, vocabulary=first_V.shape[-1], autocast=cast)
    with torch.no_grad():
        same = torch.allclose(head(hidden_ND[:1])[0], first_V, rtol=1e-3, atol=1e-4)
    chosen = batch.predicts_BL.to(hidden_ND.device)
    return Reading(
        hidden_ND,
        head if same else None,
        [states_BLD[chosen] for states_BLD in output.hidden_states] if layers else [],
    )


class Logits:
    """The logits (N, V), float32, that predict a batch's N completion tokens, computed in chunks.

    If a model changes its logits after the output layer, such as capping them, they are computed
    all at once.

    Args:
        network: The model; it may be wrapped for several processes.
        batch: A `Batch`.
        cache: Gives the keys and values of the shared prefix for one pass.
        whole: Compute all logits at once.
    """

    def __init__(
        self,
        network: Any,
        batch: Any,
        *,
        cache: Callable[[], AbstractContextManager[Any]] = nullcontext,
        whole: bool = False,
    ) -> None:
        def run(forward: Callable[..., Any]) -> Any:
            with cache() as keys_values:
                return forward(network, batch, cache=keys_values)

        self._head: Head | None = None
        if not whole:
            reading = run(read)
            self._head, self._states_ND = reading.head, reading.hidden_ND
        if self._head is None:
            self._states_ND = run(completion_logits)  # the logits themselves

    @property
    def positions(self) -> int:
        """How many positions to request at a time; it bounds memory, whatever the vocabulary."""
        return len(self._states_ND) if self._head is None else self._head.positions

    def part(self, start: int, end: int) -> Tensor:
        """Logits of the positions from `start` up to `end`, excluded.

        An adapter must be on or off as it was in the forward pass.
        """
        states_CD = self._states_ND[start:end]
        return states_CD if self._head is None else self._head(states_CD)

    def chunks(self) -> Iterator[Tensor]:
        """All logits, in chunks of shape (C, V)."""
        for start in range(0, len(self._states_ND), self.positions):
            yield self.part(start, start + self.positions)


def _forward(network: Any, batch: Any, cache: Any, **more: Any) -> Any:
    inner = getattr(network, "module", network)  # it is wrapped if there are several processes
    device, mask = inner.device, batch.attention_mask
    return network(
        input_ids=batch.input_ids_BL.to(device),
        attention_mask=mask.to(device, inner.dtype if mask.is_floating_point() else None),
        position_ids=batch.position_ids_BL.to(device),
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=batch.predicts_BL.to(device),
        **({} if batch.bounds is None else {attention.BOUNDS: batch.bounds}),
        **more,
    )


def output_embeddings(network: PreTrainedModel) -> torch.nn.Module:
    """The layer that turns hidden states into logits; its weight has a row per vocabulary token."""
    layer: torch.nn.Module = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    return layer
