"""A teacher that runs beside the student, for losses of what is too large to be stored: hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from instil.models.batch import Batch, collate
from instil.models.cache import SharedPrefix
from instil.models.forward import read
from instil.models.load import LanguageModel


@dataclass(frozen=True)
class OnlineTeacher:
    """Hidden states under the context, which is read once.

    Attributes:
        model: The weights.
        alone: Makes a context in which an adapter on them is off.
        prefix: What all teacher prompts begin with.
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
        """Reads what the prompts share.

        Args:
            model: The teacher.
            prompts: All teacher prompts, in token ids.
            alone: Makes a context in which an adapter on the model is off.
        """
        with alone():
            return cls(model, alone, SharedPrefix(model.network, prompts))

    def collate(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Batch:
        """A batch of teacher prompts with their completions."""
        return collate(prompts, completions, pad_id=self.model.pad_id, prefix=self.prefix.length)

    @torch.no_grad()
    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """The hidden states (N, D) of every layer at the positions that predict a completion token.

        Args:
            batch: As `collate` makes it.
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
