"""Proves on real rows that a faster way to compute gives what the plain forward pass gives.

Most models can read rows that are packed, padded, or continued from a shared prefix. Some cannot:
their layers ignore the mask, count positions themselves, or carry a state along the row. No
configuration tells for sure. So the first pass of each way is compared with the plainest call of
the model, on rows of that pass. A way that fails is not used, and the run says so in one line.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from instil.models.batch import alone
from instil.models.forward import completion_logits, output_embeddings
from instil.system import processes

_LOG = logging.getLogger(__name__)

# Largest difference between two ways in float32, as a share of the largest logit. Rounding makes
# about 1e-6.
EXACT = 1e-4
# Largest median KL in bfloat16 and float16, nats per token. Rounding makes 0.0003 to 0.003. The
# median, because rounding may send a token to another expert, which changes all for that token.
ROUNDED = 0.02
# The same for the largest KL of few tokens. Rounding may make 0.02 at one token.
FEW_ROUNDED = 0.1
# Most tokens that are compared per row.
COMPARED = 16
# Fewer tokens prove little in low precision. A prompt's tokens are compared, too, where they can.
FEW = 8
# Kinds of rows. Each is proven by itself: a single row proves nothing for several.
SINGLE, EQUAL, DIFFERENT = KINDS = "a row", "rows of equal length", "rows of different length"

Made = TypeVar("Made")
# By model and way: the size that was proven, see `_step`.
_PROVEN: WeakKeyDictionary[torch.nn.Module, dict[str, int]] = WeakKeyDictionary()
_WRONG: WeakKeyDictionary[torch.nn.Module, set[str]] = WeakKeyDictionary()


def kind(lengths: Sequence[int]) -> str:
    """What kind of rows those of these lengths are together."""
    if len(lengths) == 1:
        return SINGLE
    return DIFFERENT if len(set(lengths)) > 1 else EQUAL


def refused(network: torch.nn.Module, *ways: str) -> bool:
    """Whether one of these ways was tried with this model, and was wrong."""
    return not _WRONG.get(network, set()).isdisjoint(ways)


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
            when the size has grown by half.
        make: Computes it. Its errors count as a failure of a way that is not proven yet.
        holds: Compares what was made with the plain forward pass.
        instead: What is done if the way is wrong, for the user.

    Returns:
        What was made; None if the way is wrong for this model.
    """
    if refused(network, way):
        return None
    known = _PROVEN.setdefault(network, {})
    if known.get(way, 0) >= _step(size):
        return make()
    reason = "it gives other numbers than a plain forward pass"
    try:
        made = make()
        if holds(made):
            known[way] = _step(size)
            return made
    except Exception as error:  # a model may raise anything when it is called in a new way
        if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error).lower():
            raise
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    _WRONG.setdefault(network, set()).add(way)
    name = type(getattr(network, "get_base_model", lambda: network)()).__name__
    if processes.is_main():
        _LOG.warning("%s cannot %s (%s); %s", name, way, reason, instead)
    return None


def _step(size: int) -> int:
    """The size in steps of 1.4 times."""
    return math.ceil(2 * math.log2(max(1, size)))


@torch.inference_mode()
def agree(
    network: Any,
    sequences: Sequence[tuple[list[int], list[int]]],
    logits: Callable[[int, int], Tensor],
) -> bool:
    """Whether a batch's logits equal those of plain forward passes, but for rounding.

    Of more than four sequences, the first, the shortest and the last one are compared: in padded
    rows the shortest has the most padding, and in a packed row the last one has the most tokens
    before it.

    Args:
        network: The model, in evaluation mode.
        sequences: Prompts with their completions, in token ids.
        logits: Gives the logits (C, V) of the completion tokens from a start to an end, excluded.
    """
    shortest = min(range(len(sequences)), key=lambda n: sum(map(len, sequences[n])))
    ends = list(accumulate(len(completion) for _, completion in sequences))
    layer = output_embeddings(getattr(network, "module", network))
    few = len(sequences) <= 4
    for number in range(len(sequences)) if few else {0, shortest, len(sequences) - 1}:
        prompt, completion = sequences[number]
        before, compared = prompt + completion[:-COMPARED], completion[-COMPARED:]
        computed_in: list[torch.dtype] = []  # autocast may compute in bfloat16
        hook = layer.register_forward_hook(
            lambda module, args, made, seen=computed_in: seen.append(made.dtype)
        )
        try:
            plain_TV = completion_logits(network, alone(before, compared))
        finally:
            hook.remove()
        if plain_TV.isnan().any():  # nothing to compare with; training refuses such a loss
            continue
        made_TV = logits(ends[number] - len(compared), ends[number]).float()
        exact = network.dtype == computed_in[0] == torch.float32
        if made_TV.shape != plain_TV.shape or not same(made_TV, plain_TV, exact=exact):
            return False
    return True


def lengthened(
    prompt: list[int], completion: list[int], *, least: int = 0
) -> tuple[list[int], list[int]]:
    """The same sequence with a longer completion, which takes tokens of the prompt.

    Args:
        prompt: Token ids.
        completion: Token ids.
        least: The prompt keeps more tokens than this.
    """
    moved = max(0, min(COMPARED - len(completion), len(prompt) - least - 1))
    start = len(prompt) - moved
    return prompt[:start], prompt[start:] + completion


def same(made_TV: Tensor, plain_TV: Tensor, *, exact: bool) -> bool:
    """Whether two logits of one row are equal, but for the rounding of float32 or bfloat16."""
    p_TV, q_TV = plain_TV.log_softmax(-1), made_TV.log_softmax(-1)
    apart_TV = torch.where(p_TV == q_TV, 0, p_TV - q_TV)  # both may be -inf
    if exact:
        largest = plain_TV.amax(-1).abs().max()  # a masked vocabulary may hold the least number
        return bool(apart_TV.abs().max() <= EXACT * max(1.0, float(largest)))
    kl_T = (p_TV.exp() * apart_TV).sum(-1)
    if len(kl_T) < FEW:
        return bool(kl_T.amax() <= FEW_ROUNDED)
    return bool(kl_T.quantile(0.5, interpolation="higher") <= ROUNDED)
