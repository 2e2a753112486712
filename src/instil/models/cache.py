"""A context's keys and values, computed once and shared by every row."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from typing_extensions import override

from instil.models.attention import beside, reads_bounds
from instil.models.batch import collate, shared_prefix
from instil.models.forward import CACHE, Logits
from instil.models.packing import LONG_PREFIX
from instil.models.proof import agree, lengthened, proven

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


class _AfterPrefix(DynamicLayer):  # type: ignore[no-untyped-call]
    """The keys and values of a batch of rows, without those of the prefix that all of them read."""

    def __init__(self, prefix: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._prefix = (prefix.keys, prefix.values)

    @override
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds keys and values; returns the rows' own ones."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return beside(keys, self._prefix), values

    @override
    def get_seq_length(self) -> int:
        """Number of tokens, with the prefix."""
        return int(self._prefix[0].shape[-2] + super().get_seq_length())


class SharedPrefix:
    """The leading tokens that all given prompts share, read by the model once.

    Args:
        network: A causal language model.
        prompts: Full prompts in token ids. Fewer than two share nothing.
    """

    @torch.inference_mode()
    def __init__(self, network: Any, prompts: Sequence[list[int]]) -> None:
        self.length = shared_prefix(prompts) if len(prompts) > 1 else 0
        self.in_place = False
        self._network = network
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
        """The cache for a batch of `rows`; None if nothing is shared.

        A model that reads the prefix in place gets no copy of it.
        """
        if not self.length:
            return None
        if self.in_place:
            cache = DynamicCache(config=self._network.config)
            cache.layers = [_AfterPrefix(layer) for layer in self._cache.layers]
            return cache
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

    @torch.inference_mode()
    def read_in_place(self, prompts: Sequence[list[int]]) -> None:
        """Lets the rows of a batch read the prefix where it is, if the model can.

        With copies, a long prefix leaves room for few rows, and each row reads its own copy again
        for every token.

        Args:
            prompts: Some of the full prompts, in token ids.
        """
        network = self._network
        if self.length < LONG_PREFIX or not (reads_bounds(network) and packable(network)):
            return
        one = [(prompt[:-1], prompt[-1:]) for prompt in prompts[:1]]
        one = [lengthened(*sequence, least=self.length) for sequence in one]

        def read() -> Logits:
            self.in_place = True
            batch = collate(*zip(*one, strict=True), pad_id=0, prefix=self.length)
            return Logits(network, batch, cache=lambda: nullcontext(self.cache(1)))

        proof = proven(
            network,
            "read a shared prefix in place",
            self.length,
            read,
            lambda logits: agree(network, one, logits.part),
            instead="each row gets a copy, which takes longer",
        )
        self.in_place = proof is not None

    def batches(
        self, lengths: Sequence[int], *, batch_size: int, scored: Sequence[int] | None = None
    ) -> Iterator[list[int]]:
        """Cuts rows into batches of similar length, with little padding, and yields their numbers.

        Args:
            lengths: Length of each row with the prefix, in tokens.
            batch_size: Most rows in a batch. A batch has fewer rows if they are long or if many of
                their tokens are scored.
            scored: Number of tokens of each row whose logits are needed.
        """
        batch: list[int] = []
        tokens, in_place = 0, self.length if self.in_place else 0
        for number in sorted(range(len(lengths)), key=lengths.__getitem__):
            wanted = scored[number] if scored else 0
            too_long = (len(batch) + 1) * (lengths[number] - in_place) > MOST_CACHED_TOKENS
            too_wide = tokens + wanted > MOST_SCORED_TOKENS
            if batch and (len(batch) == batch_size or too_long or too_wide):
                yield batch
                batch, tokens = [], 0
            batch.append(number)
            tokens += wanted
        if batch:
            yield batch
