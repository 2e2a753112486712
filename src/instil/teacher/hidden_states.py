"""A teacher that runs during training; hidden states are too large to store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from instil.models.batch import Batch, collate
from instil.models.batch import alone as alone_batch
from instil.models.cache import SharedPrefix
from instil.models.forward import completion_logits, read
from instil.models.load import LanguageModel
from instil.models.proof import DIFFERENT, agree, proven
from instil.models.reader import Way, read_rows


@dataclass(frozen=True)
class OnlineTeacher:
    """Gives the teacher's hidden states; the shared beginning of its prompts is read only once.

    Attributes:
        model: The teacher.
        alone: Makes a context manager in which an adapter on the model is off.
        prefix: The shared beginning of all teacher prompts.
        padded: Whether the teacher reads several rows at once.
    """

    model: LanguageModel
    alone: Callable[[], AbstractContextManager[object]]
    prefix: SharedPrefix
    padded: bool

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
        network, shortest, longest = model.network, min(prompts, key=len), max(prompts, key=len)
        prompts_2 = [shortest, longest]
        completions_2 = [shortest[-1:], longest[-1:] * 2]  # rows of different length
        rows_2 = list(zip(prompts_2, completions_2, strict=True))

        def read_after(prefix: SharedPrefix) -> Tensor:
            batch = collate(prompts_2, completions_2, pad_id=model.pad_id, prefix=prefix.length)
            return completion_logits(network, batch, cache=prefix.cache(2))

        with alone():
            shares = not Way.SHARED.refused(network, prefix=True)
            prefix = SharedPrefix(network, prompts if shares else [])
            if prefix.length:
                made = proven(
                    network,
                    Way.SHARED.of(DIFFERENT, prefix=True),
                    len(longest),
                    lambda: read_after(prefix),
                    lambda made_NV: agree(network, rows_2, lambda start, end: made_NV[start:end]),
                    instead=Way.SHARED.instead,
                )
                prefix = SharedPrefix(network, []) if made is None else prefix
            if not prefix.length:
                read_rows(model, prompts_2, completions_2)
            padded = prefix.length > 0 or not Way.PADDED.refused(network, prefix=False)
            return cls(model, alone, prefix, padded)

    def collate(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]]
    ) -> list[Batch]:
        """Batches of teacher prompts with their completions: one, or one per row."""
        if not self.padded:
            return [alone_batch(*row) for row in zip(prompts, completions, strict=True)]
        prefix = self.prefix.length
        return [collate(prompts, completions, pad_id=self.model.pad_id, prefix=prefix)]

    @torch.no_grad()
    def hidden_states(self, batches: Sequence[Batch]) -> list[Tensor]:
        """The hidden states (N, D) of every layer at the positions that predict a completion token.

        Args:
            batches: What `collate` made.
        """
        network = self.model.network
        training = network.training
        network.train(False)  # a teacher has no dropout
        try:
            with self.alone():
                made = []
                for batch in batches:
                    cache = self.prefix.cache(len(batch.input_ids_BL))
                    made.append(read(network, batch, cache=cache, layers=True).layers)
        finally:
            network.train(training)
        return [torch.cat(layers) for layers in zip(*made, strict=True)]
