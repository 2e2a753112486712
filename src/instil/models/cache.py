"""The context's keys and values, computed once and shared by every row."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from instil.models.batch import shared_prefix

# Tokens that one batch may hold in its cache, all rows together: bounds the memory of long prompts.
MOST_CACHED_TOKENS = 16_384
# Tokens whose logits one batch may hold: 1,024 of a vocabulary of 150k take 0.6 GB.
MOST_SCORED_TOKENS = 1_024
# Prompts of one context, in the mean, from which on it pays to read each of several contexts by itself.
SHARED_BY = 4


def alike(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Prompts by their contexts: the numbers of those that begin alike for at least half of the shortest one.

    One group if there are not `SHARED_BY` to a group: then hardly anything is shared that is worth reading by itself.
    """
    length = min(map(len, prompts), default=0) // 2
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt[:length]), []).append(number)
    shared = len(groups) * SHARED_BY <= len(prompts)
    return list(groups.values()) if shared else [[*range(len(prompts))]]


class SharedPrefix:
    """The leading tokens that a set of prompts have in common, read by the model once.

    Args:
        network: A causal language model.
        prompts: Whole prompts in token ids.
        padded_after: Padding will stand between the prefix and the rest, as in decoding. Layers with a sliding window
            count it as text, so nothing is shared on a model that has them.
    """

    @torch.inference_mode()
    def __init__(
        self, network: Any, prompts: Sequence[list[int]], *, padded_after: bool = False
    ) -> None:
        self.length = shared_prefix(prompts) if len(prompts) > 1 else 0
        self._cache = DynamicCache(config=network.config)
        self.can_lend = all(type(layer) is DynamicLayer for layer in self._cache.layers)
        slides = any(getattr(layer, "is_sliding", False) for layer in self._cache.layers)
        copies = all(hasattr(layer, "batch_repeat_interleave") for layer in self._cache.layers)
        if not copies or (slides and padded_after):
            self.length = 0
        if self.length:
            ids = torch.tensor([prompts[0][: self.length]], device=network.device)
            network(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def cache(self, rows: int) -> DynamicCache | None:
        """A cache of its own for a batch of `rows`; None if nothing is shared."""
        if not self.length:
            return None
        expanded = copy.deepcopy(self._cache)
        expanded.batch_repeat_interleave(rows)
        return expanded

    @contextmanager
    def lent(self) -> Iterator[DynamicCache | None]:
        """The cache itself for a packed batch, without a copy; what the batch adds is taken off again."""
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
        """Cuts rows into batches of like length, so that little is padded, and yields their numbers.

        Args:
            lengths: Length of each row with its prefix, in tokens.
            batch_size: Most rows in a batch; fewer where rows are long or many tokens are scored.
            scored: Tokens of each row whose logits are wanted.
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
