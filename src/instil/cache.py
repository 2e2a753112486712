"""The context's keys and values, computed once and shared by every row."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from instil.alignment import shared_prefix

# Tokens of cached prefix that one batch may hold, all rows together: bounds the memory of a long context.
MOST_CACHED_TOKENS = 16_384
# Tokens whose logits one batch may hold: 1,024 of a vocabulary of 150k take 0.6 GB.
MOST_SCORED_TOKENS = 1_024


class SharedPrefix:
    """The leading tokens that a set of prompts have in common, read by the model once.

    Args:
        network: A causal language model.
        prompts: Whole prompts in token ids.
    """

    @torch.inference_mode()
    def __init__(self, network: Any, prompts: Sequence[list[int]]) -> None:
        self.length = shared_prefix(prompts) if len(prompts) > 1 else 0
        self._cache = DynamicCache(config=network.config)
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

    def batches(
        self, lengths: Sequence[int], *, batch_size: int, scored: Sequence[int] | None = None
    ) -> Iterator[list[int]]:
        """Cuts rows into batches of like length, so that little is padded, and yields their numbers.

        Args:
            lengths: Length of each row, in tokens.
            batch_size: Most rows in a batch; fewer where the prefix is long or many tokens are scored.
            scored: Tokens of each row whose logits are wanted.
        """
        size = max(1, min(batch_size, MOST_CACHED_TOKENS // max(self.length, 1)))
        batch: list[int] = []
        tokens = 0
        for number in sorted(range(len(lengths)), key=lengths.__getitem__):
            wanted = scored[number] if scored else 0
            if batch and (len(batch) == size or tokens + wanted > MOST_SCORED_TOKENS):
                yield batch
                batch, tokens = [], 0
            batch.append(number)
            tokens += wanted
        if batch:
            yield batch
