"""A context's keys and values, computed once and shared by every row."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from instil.models.batch import shared_prefix
from instil.models.forward import CACHE
from instil.models.proof import proven

# Most tokens in the cache of one batch, over all rows. This bounds the memory of long prompts.
MOST_CACHED_TOKENS = 16_384
# Most tokens of one batch whose logits are computed. With a vocabulary of 150k, 1,024 take 0.6 GB.
MOST_SCORED_TOKENS = 1_024
# Smallest mean number of prompts per context for which each context is read separately.
SHARED_BY = 4


def alike(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Groups prompts by context, and returns the numbers of the prompts in each group.

    Prompts are in one group if they begin with the same tokens, for half the length of the shortest
    prompt. If a group has fewer than `SHARED_BY` prompts on average, all prompts are one group:
    reading contexts separately would then save too little.
    """
    length = min(map(len, prompts), default=0) // 2
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt[:length]), []).append(number)
    shared = len(groups) * SHARED_BY <= len(prompts)
    return list(groups.values()) if shared else [[*range(len(prompts))]]


def packable(network: Any) -> bool:
    """Whether every layer of a model keeps the keys and values of all tokens, and nothing else.

    Only then can several sequences be packed into one row. Layers that slide a window along the
    row, or carry a state, would mix the sequences.
    """
    layers = DynamicCache(config=network.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


class SharedPrefix:
    """The leading tokens that all given prompts share, read by the model once.

    Args:
        network: A causal language model.
        prompts: Full prompts in token ids. Fewer than two share nothing.
    """

    @torch.inference_mode()
    def __init__(self, network: Any, prompts: Sequence[list[int]]) -> None:
        self.length = shared_prefix(prompts) if len(prompts) > 1 else 0
        self._cache = DynamicCache(config=network.config)
        self.slides = any(getattr(layer, "is_sliding", False) for layer in self._cache.layers)

        def fill() -> DynamicCache:
            ids = torch.tensor([prompts[0][: self.length]], device=network.device)
            network(input_ids=ids, **{CACHE: self._cache}, use_cache=True, logits_to_keep=1)
            return self._cache

        if self.length:
            kept = proven(
                network,
                "keep a shared prefix",
                self.length,
                fill,
                lambda cache: cache.get_seq_length() == self.length,
                instead="the context is read again for each row, which takes longer",
            )
            self.length = 0 if kept is None else self.length

    def cache(self, rows: int) -> DynamicCache | None:
        """A copy of the cache for a batch of `rows`; None if nothing is shared."""
        if not self.length:
            return None
        expanded = copy.deepcopy(self._cache)
        # Of all ways to repeat a cache, only this one repeats every kind of layer.
        expanded.reorder_cache(torch.zeros(rows, dtype=torch.long))  # type: ignore[arg-type]
        return expanded

    @contextmanager
    def lent(self) -> Iterator[DynamicCache | None]:
        """The cache itself for a packed batch, without a copy.

        What the batch adds to the cache is removed afterwards.
        """
        if not self.length:
            yield None
            return
        try:
            yield self._cache
        finally:
            self._cache.crop(self.length - self._cache.get_seq_length())

    def batches(
        self, lengths: Sequence[int], *, batch_size: int, scored: Sequence[int] | None = None
    ) -> Iterator[list[int]]:
        """Cuts rows into batches of similar length, with little padding, and yields their numbers.

        Args:
            lengths: Length of each row with its prefix, in tokens.
            batch_size: Most rows in a batch. A batch has fewer rows if they are long or if many of
                their tokens are scored.
            scored: Number of tokens of each row whose logits are needed.
        """
        batch: list[int] = []
        tokens = 0
        for number in sorted(range(len(lengths)), key=lengths.__getitem__):
            wanted = scored[number] if scored else 0
            too_long = (len(batch) + 1) * lengths[number] > MOST_CACHED_TOKENS
            too_wide = tokens + wanted > MOST_SCORED_TOKENS
            if batch and (len(batch) == batch_size or too_long or too_wide):
                yield batch
                batch, tokens = [], 0
            batch.append(number)
            tokens += wanted
        if batch:
            yield batch
