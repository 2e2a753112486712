"""Reads many prompts with completions: each shared prefix once, the rest in few passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from instil.models.attention import reads_bounds
from instil.models.batch import Batch, collate, pack
from instil.models.cache import SharedPrefix, alike
from instil.models.forward import Logits
from instil.models.load import LanguageModel
from instil.models.packing import LONG_PREFIX, PACKED_TOKENS, keeps_apart, packs
from instil.system import processes
from instil.system.progress import Advance


@dataclass(frozen=True)
class Packing:
    """When prompts are packed into one row. A model that mixes packed sequences gets padded rows.

    Attributes:
        tokens: Most tokens of one packed row.
        prefix: Least length of the shared prefix for packing, in tokens.
        masked: Whether to pack also for a model that needs a mask to separate the sequences.
    """

    tokens: int = PACKED_TOKENS
    prefix: int = 0
    masked: bool = False


COMPLETIONS = Packing()
# Few tokens of these prompts need logits, so a row can hold more than for scoring completions.
LABELS = Packing(tokens=1280, prefix=LONG_PREFIX, masked=True)


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        rows: Numbers of the prompts that it read.
        batch: These prompts in the same order, each with its completions.
        logits: For the batch's N completion tokens.
        prefix: Tokens of the shared prefix that was read just before; 0 if it was already known.
    """

    rows: list[int]
    batch: Batch
    logits: Logits
    prefix: int


class Reader:
    """Reads prompts with their completions and gives the logits of the completion tokens.

    Prompts are grouped by the context that they begin with. A context's keys and values stay in
    memory until rows of another context are read, also between calls of `read`.

    Args:
        model: A language model, or a model with a classification head. The caller turns an adapter
            on or off.
        prompts: Full prompts in token ids.
        completions: One or several completions per prompt.
        packing: When prompts are packed; None: they are always padded.
        batch_size: Most prompts in a padded forward pass.
        whole: Compute all logits of a pass at once. This costs less if few tokens are scored.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[list[int]],
        completions: Sequence[Sequence[list[int]]],
        *,
        packing: Packing | None = None,
        batch_size: int,
        whole: bool = False,
    ) -> None:
        self._model, self._prompts, self._completions = model, prompts, completions
        self._packing, self._batch_size, self._whole = packing, batch_size, whole
        self._groups = alike(prompts)
        self._group_of = {row: group for group, of in enumerate(self._groups) for row in of}
        self._group = -1
        self._prefix: SharedPrefix | None = None
        self._packed = False

    def read(self, numbers: Sequence[int] | None = None) -> Iterator[Pass]:
        """Yields forward passes, context by context.

        Take their logits in inference mode, too.

        Args:
            numbers: Numbers of the prompts to read, in any order; None: all prompts.
        """
        requested = range(len(self._prompts)) if numbers is None else numbers
        of_group = self._group_of.__getitem__
        for group, rows in groupby(
            sorted(requested, key=lambda row: (of_group(row), row)), of_group
        ):
            # Do not give the prefix a local name: its keys and values would then stay in memory
            # while the next prefix is read.
            fresh = self._open(group)
            for batch in self._batches(list(rows)):
                yield self._pass(batch, fresh)
                fresh = 0

    def _open(self, group: int) -> int:
        """Reads the tokens that a context's prompts share.

        Returns:
            Their number; 0 if this context was read last and is still in memory.
        """
        if self._prefix is not None and group == self._group:
            return 0
        self._group, self._prefix = group, None  # free the previous prefix first
        network, of_group = self._model.network, self._groups[group]
        self._prefix = SharedPrefix(network, [self._prompts[number] for number in of_group])
        first, last = of_group[0], of_group[-1]
        self._packed = (
            self._packing is not None
            and self._prefix.can_lend
            and self._prefix.length >= self._packing.prefix
            and (self._packing.masked or reads_bounds(network))
            and keeps_apart(
                network,
                (self._prompts[first], self._completions[first][0]),
                (self._prompts[last], self._completions[last][-1]),
            )
        )
        return self._prefix.length

    def _batches(self, rows: list[int]) -> Iterator[list[int]]:
        """The rows of each forward pass."""
        assert self._prefix is not None
        shared, own, scored = self._prefix.length, [], []
        for number in rows:
            lengths = [len(completion) for completion in self._completions[number]]
            own.append((len(self._prompts[number]) - shared + max(lengths)) * len(lengths))
            scored.append(sum(lengths))
        if self._packing is not None and self._packed:
            batches = packs(own, most=self._packing.tokens)
        else:
            whole = [shared + length for length in own]
            batches = self._prefix.batches(whole, batch_size=self._batch_size, scored=scored)
        for batch in batches:
            yield [rows[i] for i in batch]

    @torch.inference_mode()
    def _pass(self, rows: list[int], fresh: int) -> Pass:
        assert self._prefix is not None
        prefix, network = self._prefix, self._model.network
        prompts = [self._prompts[number] for number in rows for _ in self._completions[number]]
        completions = [completion for number in rows for completion in self._completions[number]]
        if self._packed:
            masked = not reads_bounds(network)
            batch = pack(prompts, completions, prefix=prefix.length, masked=masked)
            logits = Logits(network, batch, cache=prefix.lent, whole=self._whole)
        else:
            batch = collate(prompts, completions, pad_id=self._model.pad_id, prefix=prefix.length)
            logits = Logits(
                network,
                batch,
                cache=lambda: nullcontext(prefix.cache(len(prompts))),
                whole=self._whole,
            )
        return Pass(rows, batch, logits, fresh)


def read_labels(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    *,
    batch_size: int,
    advance: Advance,
    make: Callable[[Tensor], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Computes a result for each prompt from the logits that decide its label.

    Each process of a launch reads its share of the prompts, and receives the results of all.

    Args:
        model: A language model, or a model with a classification head.
        prompts: R full prompts in token ids, already checked.
        completions: Placed after each prompt, as in `LabelTokens.completions`; P tokens together.
        batch_size: Most prompts in a padded forward pass.
        advance: Called to report this process's progress.
        make: Computes the results of some prompts from their logits (rows x P, V): tensors by name,
            in processor memory, with the rows as first dimension.

    Returns:
        The same tensors for all prompts, in their order.
    """
    mine = processes.share(len(prompts))
    reader = Reader(
        model,
        [prompts[number] for number in mine],
        [completions] * len(mine),
        packing=LABELS,
        batch_size=batch_size,
        whole=True,
    )
    made: list[tuple[list[int], dict[str, Tensor]]] = []
    with torch.inference_mode():
        for reading in reader.read():
            (logits_NV,) = reading.logits.chunks()
            made.append(([mine[row] for row in reading.rows], make(logits_NV)))
            advance(len(reading.rows), reading.prefix + reading.batch.tokens)
    every = [batch for share in processes.gather(made) for batch in share]
    order = torch.tensor([number for numbers, _ in every for number in numbers]).argsort()
    return {name: torch.cat([batch[name] for _, batch in every])[order] for name in every[0][1]}
