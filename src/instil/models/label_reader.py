"""Reads prompts with the labels that may follow them, and gives the logits that decide the label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from typing_extensions import override

from instil.models.branches import (
    PATHS,
    Branches,
    branch,
    branches_refused,
    follows,
    reach,
    way,
)
from instil.models.forward import Logits
from instil.models.load import LanguageModel
from instil.models.proof import kind, proven
from instil.models.reader import LABELS, Pass, Reader
from instil.system import processes
from instil.system.progress import Advance
from instil.system.sequences import Computed


def read_labels(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    branches: Branches,
    *,
    batch_size: int,
    advance: Advance,
    make: Callable[[Iterator[Tensor]], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Computes a result for each prompt from the logits that decide its label.

    Each process of a launch reads its share of the prompts, and receives the results of all.

    Args:
        model: A language model, or a model with a classification head.
        prompts: R full prompts in token ids, already checked.
        branches: What is read after each prompt; P nodes.
        batch_size: Most prompts in a padded forward pass.
        advance: Called to report this process's progress.
        make: Computes the results of some prompts from their logits, which it gets in chunks
            (C, V), together rows x P: tensors by name, in processor memory, with the rows as first
            dimension.

    Returns:
        The same tensors for all prompts, in their order.
    """
    mine = processes.share(len(prompts))
    reader = LabelReader(model, Computed.picked(prompts, mine), branches, batch_size=batch_size)
    made: list[tuple[list[int], dict[str, Tensor]]] = []
    with torch.inference_mode():
        for reading in reader.read():
            made.append(([mine[row] for row in reading.rows], make(reader.chunks(reading))))
            advance(len(reading.rows), reading.prefix + reading.batch.tokens)
    every = [batch for share in processes.gather(made) for batch in share]
    order = torch.tensor([number for numbers, _ in every for number in numbers]).argsort()
    return {name: torch.cat([batch[name] for _, batch in every])[order] for name in every[0][1]}


class LabelReader(Reader):
    """A reader that reads a prompt once, with all labels as its branches.

    With a single path, or if the model cannot read branches, each path is a completion.

    Args:
        model: A language model, or a model with a classification head.
        prompts: Full prompts in token ids.
        branches: What is read after each prompt.
        batch_size: Most prompts in a padded forward pass.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[list[int]],
        branches: Branches,
        *,
        batch_size: int,
    ) -> None:
        several = len(branches.paths) > 1
        completions = [[*path, 0] for path in branches.paths]
        super().__init__(
            model,
            prompts,
            [completions] * len(prompts),
            packing=LABELS,
            batch_size=batch_size,
            whole=not several,
        )
        self._branches = branches
        longest = max(map(len, prompts), default=0) + branches.longest
        self._fits = several and longest <= reach(model.network)

    def chunks(self, reading: Pass) -> Iterator[Tensor]:
        """The logits at the nodes of each row of a pass, in chunks of shape (C, V)."""
        nodes = len(self._branches.nodes)
        whole = len(reading.rows) * nodes == len(reading.batch.completion_N)
        end = 0
        for logits_CV in reading.logits.chunks():
            start, end = end, end + len(logits_CV)
            if whole:
                yield logits_CV
            else:  # paths that share nodes give their logits more than once
                position_C = torch.arange(start, end) % len(self._branches.first)
                yield logits_CV[self._branches.first[position_C].to(logits_CV.device)]

    @property
    def _branched(self) -> bool:
        assert self._prefix is not None
        network, prefix = self._model.network, self._prefix.length > 0
        return self._fits and not branches_refused(network, prefix=prefix)

    @override
    def _batches(self, rows: list[int]) -> Iterator[list[int]]:
        if not self._branched:
            yield from super()._batches(rows)
            return
        assert self._prefix is not None
        nodes = len(self._branches.nodes)
        lengths = [len(self._prompts[number]) + nodes - 1 for number in rows]
        scored = [nodes] * len(rows)
        for batch in self._prefix.batches(lengths, batch_size=self._batch_size, scored=scored):
            yield [rows[i] for i in batch]

    @override
    @torch.inference_mode()
    def _pass(self, rows: list[int], fresh: int) -> Pass | None:
        if not self._branched:
            return super()._pass(rows, fresh)
        network, prefix = self._model.network, self._prefix
        assert prefix is not None
        prompts = [self._prompts[number] for number in rows]
        batch = branch(prompts, self._branches, pad_id=self._model.pad_id, prefix=prefix.length)
        logits = proven(
            network,
            way(kind([len(prompt) for prompt in prompts]), prefix=prefix.length > 0),
            prefix.length + batch.input_ids_BL.shape[1],
            lambda: Logits(network, batch, cache=lambda: nullcontext(prefix.cache(len(rows)))),
            lambda logits: follows(network, prompts, self._branches, logits),
            instead=PATHS,
        )
        return None if logits is None else Pass(rows, batch, logits, fresh)
