"""A forward pass that computes logits only where they are needed, or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from instil.models import attention
from instil.models.chunked import Head

# The argument of a forward pass that takes the cache. transformers 5.24 renamed it.
NEW = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24)
CACHE = "cache" if NEW else "past_key_values"

# transformers' names for what some models do with the output layer's numbers: multiply or divide
# them, or cap them.
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap")
# Size of the logits on which a model is asked what it does with them. A cap shows on large numbers.
PROBED_LOGIT = 64.0

# By output layer: what the model does with its numbers. None: something else.
_KNOWN: WeakKeyDictionary[torch.nn.Module, tuple[float, float | None] | None] = WeakKeyDictionary()


def completion_logits(network: Any, batch: Any, *, cache: Any = None) -> Tensor:
    """Logits (N, V), float32, for exactly the batch's N completion tokens.

    Args:
        network: The model; it may be wrapped for several processes.
        batch: A `Batch`.
        cache: Keys and values of the shared prefix, which is not in the batch.
    """
    return _chosen(_forward(network, batch, cache).logits, batch).float()


@dataclass(frozen=True)
class Reading:
    """The result of a forward pass before the output layer.

    Attributes:
        hidden_ND: Input of the output layer at the N positions that predict a completion token.
        head: The output layer; None if the model changes the logits in an unknown way.
        layers: Hidden states at the same positions: the output of the embeddings, then of each
            layer. Empty if they were not requested.
    """

    hidden_ND: Tensor
    head: Head | None
    layers: list[Tensor]


def read(network: Any, batch: Any, *, cache: Any = None, layers: bool = False) -> Reading:
    """Runs a model up to its output layer.

    The output layer gets a single position. At first it also gets that position enlarged, which
    shows whether the model scales or caps the logits as its configuration says.

    Args:
        network: The model; it may be wrapped for several processes.
        batch: A `Batch`.
        cache: Keys and values of the shared prefix, which is not in the batch.
        layers: Whether to return the hidden states of every layer.
    """
    inner = getattr(network, "module", network)
    layer, device = output_embeddings(inner), inner.device.type
    seen: list[tuple[Tensor, Tensor, torch.dtype | None]] = []

    def keep_first(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        hidden_ND = _chosen(args[0], batch)
        first_1D = hidden_ND[:1].detach()
        if layer not in _KNOWN:
            with torch.no_grad():
                largest = float(module.forward(first_1D).abs().max())
            enlarged_1D = first_1D * (PROBED_LOGIT / max(largest, 1e-3))
            first_1D = torch.cat([first_1D, enlarged_1D])
        seen.append((hidden_ND, first_1D, cast))
        return (first_1D if args[0].dim() == 2 else first_1D[None], *args[1:])

    hook = layer.register_forward_pre_hook(keep_first)
    try:
        output = _forward(network, batch, cache, output_hidden_states=layers)
    finally:
        hook.remove()
    hidden_ND, first_1D, cast = seen[0]
    logits_1V = output.logits.detach().float().flatten(0, -2)
    head = Head(layer, vocabulary=logits_1V.shape[-1], autocast=cast)
    if layer not in _KNOWN:
        _KNOWN[layer] = _found(head, inner.config.get_text_config(), first_1D, logits_1V)
    known = _KNOWN[layer]
    return Reading(
        hidden_ND,
        None if known is None else replace(head, scale=known[0], cap=known[1]),
        [_chosen(states_BLD, batch) for states_BLD in output.hidden_states] if layers else [],
    )


@torch.no_grad()
def _found(
    head: Head, config: Any, hidden_2D: Tensor, logits_2V: Tensor
) -> tuple[float, float | None] | None:
    """The scale and the cap with which the output layer gives the model's own logits."""
    scales, caps = (
        [value for name in names if isinstance(value := getattr(config, name, None), int | float)]
        for names in (SCALES, CAPS)
    )
    exact = hidden_2D.dtype == torch.float32 and head.autocast is None
    tolerances_21 = (1e-4 if exact else 2e-2) * logits_2V.abs().amax(-1, keepdim=True)
    for scale in (1.0, *scales, *(1 / scale for scale in scales if scale)):
        for cap in (None, *caps):
            made_2V = replace(head, scale=scale, cap=cap)(hidden_2D)
            if ((made_2V - logits_2V).abs() <= tolerances_21).all():
                return float(scale), cap
    return None


class Logits:
    """The logits (N, V), float32, that predict a batch's N completion tokens, computed in chunks.

    If a model changes its logits in an unknown way, they are computed all at once.

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
        layer = output_embeddings(getattr(network, "module", network))
        if not whole and _KNOWN.get(layer, True) is not None:
            reading = run(read)
            self._head, self._states_ND = reading.head, reading.hidden_ND
        if self._head is None:
            self._states_ND = run(completion_logits)  # the logits themselves

    @classmethod
    def cat(cls, made: Sequence[Logits]) -> Logits:
        """The logits of several batches of one model, one after another."""
        joined = copy.copy(made[0])
        joined._states_ND = torch.cat([one._states_ND for one in made])
        return joined

    def picked(self, positions: Sequence[int]) -> Logits:
        """The logits of some positions, in this order."""
        made = copy.copy(self)
        made._states_ND = self._states_ND[torch.tensor(positions, device=self._states_ND.device)]
        return made

    def __len__(self) -> int:
        """N."""
        return len(self._states_ND)

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
    if mask is None:  # alone: the completion is at the end
        more |= {"logits_to_keep": len(batch.completion_N)}
    else:
        more |= {
            "attention_mask": mask.to(device, inner.dtype if mask.is_floating_point() else None),
            "position_ids": batch.position_ids_BL.to(device),
            CACHE: cache,
            "logits_to_keep": batch.predicts_BL.to(device),
        }
    if batch.bounds is not None:
        more[attention.BOUNDS] = batch.bounds
    if batch.parents is not None:
        more[attention.PARENTS] = batch.parents
    return network(input_ids=batch.input_ids_BL.to(device), use_cache=cache is not None, **more)


def _chosen(states: Tensor, batch: Any) -> Tensor:
    """States (N, D) where a completion token is predicted, of a model that chose them or not."""
    if states.dim() == 3 and states.shape[:2] == batch.predicts_BL.shape:
        states_ND = states[batch.predicts_BL.to(states.device)]
    else:
        states_ND = states.flatten(0, -2)
    return states_ND if batch.order_N is None else states_ND[batch.order_N.to(states.device)]


def output_embeddings(network: PreTrainedModel) -> torch.nn.Module:
    """The layer that turns hidden states into logits; its weight has a row per vocabulary token."""
    layer: torch.nn.Module = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    return layer
