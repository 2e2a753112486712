"""Proves on real rows that a faster way to compute gives what the plain forward pass gives.

Most models can read rows that are packed, padded, or continued from a shared prefix. Some cannot:
their layers ignore the mask, count positions themselves, or carry a state along the row. No
configuration tells for sure. So the first pass of each way is compared with the plainest call of
the model, on rows of that pass. A way that fails is not used, and the run says so in one line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from instil.models.batch import alone
from instil.models.forward import model_logits

_LOG = logging.getLogger(__name__)

# Largest difference between two ways in float32, as a share of the largest logit. Rounding makes
# about 1e-6.
EXACT = 1e-4
# Largest median KL in bfloat16 and float16, nats per token. Rounding makes 0.0003 to 0.003. The
# median, because rounding may send a token to another expert, which changes all for that token.
ROUNDED = 0.02
# Most tokens that are compared per row.
COMPARED = 16

Made = TypeVar("Made")
# By model and way: the largest pass that was proven, as a power of two; 0: the way is wrong.
_PROVEN: WeakKeyDictionary[torch.nn.Module, dict[str, int]] = WeakKeyDictionary()


def kind(lengths: Sequence[int]) -> str:
    """What rows of these lengths are together. Each kind is proven by itself."""
    if len(lengths) == 1:
        return "a row"
    return "rows of different length" if len(set(lengths)) > 1 else "rows of equal length"


def refused(network: torch.nn.Module, way: str) -> bool:
    """Whether this way was tried with this model, and was wrong."""
    return _PROVEN.get(network, {}).get(way) == 0


def proven(
    network: torch.nn.Module,
    way: str,
    size: int,
    make: Callable[[], Made],
    holds: Callable[[Made], bool],
    *,
    instead: str,
) -> Made | None:
    """Computes something in one way, and proves the way where it is new.

    Args:
        network: The model.
        way: What is done, in words that follow "the model cannot".
        size: Length of the longest row or pack, in tokens. A way that was proven is proven again
            when the size has doubled.
        make: Computes it. Its errors count as a failure of a way that is not proven yet.
        holds: Compares what was made with the plain forward pass.
        instead: What is done if the way is wrong, for the user.

    Returns:
        What was made; None if the way is wrong for this model.
    """
    known = _PROVEN.setdefault(network, {})
    if known.get(way) == 0:
        return None
    if known.get(way, 0) >= size.bit_length():
        return make()
    reason = "it gives other numbers than a plain forward pass"
    try:
        made = make()
        if holds(made):
            known[way] = size.bit_length()
            return made
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model may raise anything when it is called in a new way
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    known[way] = 0
    name = type(getattr(network, "get_base_model", lambda: network)()).__name__
    _LOG.warning("%s cannot %s (%s); %s", name, way, reason, instead)
    return None


@torch.inference_mode()
def agree(
    network: Any,
    sequences: Sequence[tuple[list[int], list[int]]],
    logits: Callable[[int, int], Tensor],
) -> bool:
    """Whether a batch's logits equal those of plain forward passes, but for rounding.

    The shortest and the last sequence are compared: in padded rows the shortest has the most
    padding, and in a packed row the last one has the most tokens before it.

    Args:
        network: The model, in evaluation mode.
        sequences: Prompts with their completions, in token ids.
        logits: Gives the logits (C, V) of the completion tokens from a start to an end, excluded.
    """
    shortest = min(range(len(sequences)), key=lambda n: sum(map(len, sequences[n])))
    ends = list(accumulate(len(completion) for _, completion in sequences))
    for number in {shortest, len(sequences) - 1}:
        prompt, completion = sequences[number]
        before, compared = prompt + completion[:-COMPARED], completion[-COMPARED:]
        plain_TV = model_logits(network, alone(before, compared))
        made_TV = logits(ends[number] - len(compared), ends[number]).float()
        exact = network.dtype == plain_TV.dtype == torch.float32  # autocast may compute in bfloat16
        if made_TV.shape != plain_TV.shape or not same(made_TV, plain_TV.float(), exact=exact):
            return False
    return True


def same(made_TV: Tensor, plain_TV: Tensor, *, exact: bool) -> bool:
    """Whether two logits of one row are equal, but for the rounding of float32 or bfloat16."""
    p_TV, q_TV = plain_TV.log_softmax(-1), made_TV.log_softmax(-1)
    apart_TV = torch.where(p_TV == q_TV, 0, p_TV - q_TV)  # both may be -inf
    if exact:
        largest = plain_TV.abs().nan_to_num(posinf=0).max()
        return bool(apart_TV.abs().max() <= EXACT * max(1.0, float(largest)))
    return bool((p_TV.exp() * apart_TV).sum(-1).median() <= ROUNDED)
