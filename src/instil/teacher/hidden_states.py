"""A teacher that runs during training; hidden states are too large to store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from instil.models.batch import Batch, collate
from instil.models.cache import SharedPrefix
from instil.models.forward import completion_logits, read
from instil.models.load import LanguageModel
from instil.models.proof import agree, proven
from instil.models.reader import Way


@dataclass(frozen=True)
class OnlineTeacher:
    """Gives the teacher's hidden states; the shared beginning of its prompts is read only once.

    Attributes:
        model: The teacher.
        alone: Makes a context manager in which an adapter on the model is off.
        prefix: The shared beginning of all teacher prompts.
    """

    model: LanguageModel
    alone: Callable[[], AbstractContextManager[object]]
    prefix: SharedPrefix

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        prompts: Sequence[list[int]],
        alone: Callable[[], AbstractContextManager[object]],
    ) -> OnlineTeacher:
        """Makes a teacher, and reads the shared beginning of the prompts.

        Args:
            model: The teacher.
            prompts: All teacher prompts, in token ids.
            alone: Makes a context manager in which an adapter on the model is off.
        """
        network = model.network
        ends = sorted(prompts, key=len)
        rows = [(prompt, prompt[-1:]) for prompt in (ends[0], ends[-1])]

        def make(prefix: SharedPrefix) -> Tensor:
            batch = collate(*zip(*rows, strict=True), pad_id=model.pad_id, prefix=prefix.length)
            return completion_logits(network, batch, cache=prefix.cache(len(rows)))

        with alone():
            prefix = SharedPrefix(network, prompts)
            if prefix.length:
                made = proven(
                    network,
                    Way.SHARED.of(list(map(len, (ends[0], ends[-1])))),
                    len(ends[-1]),
                    lambda: make(prefix),
                    lambda made_2V: agree(network, rows, lambda start, end: made_2V[start:end]),
                    instead=Way.SHARED.instead,
                )
                prefix = SharedPrefix(network, []) if made is None else prefix
            return cls(model, alone, prefix)

    def collate(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Batch:
        """A batch of teacher prompts with their completions."""
        return collate(prompts, completions, pad_id=self.model.pad_id, prefix=self.prefix.length)

    @torch.no_grad()
    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """The hidden states (N, D) of every layer at the positions that predict a completion token.

        Args:
            batch: A batch from `collate`.
        """
        network = self.model.network
        training = network.training
        network.train(False)  # a teacher has no dropout
        try:
            with self.alone():
                cache = self.prefix.cache(len(batch.input_ids_BL))
                return read(network, batch, cache=cache, layers=True).layers
        finally:
            network.train(training)
