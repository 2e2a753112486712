"""Many prompts with completions: each shared prefix read once, the rest in few forward passes."""

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
    """When prompts are packed into one row; a model that mixes packed rows gets padded ones.

    Attributes:
        tokens: Most tokens of one packed row.
        prefix: Least length of the shared prefix, in tokens.
        masked: Whether to pack also for a model that needs a mask to keep the sequences apart.
    """

    tokens: int = PACKED_TOKENS
    prefix: int = 0
    masked: bool = False


COMPLETIONS = Packing()
# Few of these tokens need logits, so more go into one row than where completions are scored.
LABELS = Packing(tokens=1280, prefix=LONG_PREFIX, masked=True)


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        rows: Numbers of the prompts that it has read.
        batch: These prompts, each with its completions, in this order.
        logits: Of the batch's N completion tokens.
        prefix: Tokens of the shared prefix that was read just before; 0 where it was known already.
    """

    rows: list[int]
    batch: Batch
    logits: Logits
    prefix: int


class Reader:
    """Reads prompts with their completions and gives the logits of the completion tokens.

    Prompts are grouped by the context that they begin with. A context's keys and values are kept
    until rows of another one are read, also between calls of `read`.

    Args:
        model: A language model, or one with a classification head. Whether an adapter on it is
            active is the caller's business.
        prompts: Whole prompts in token ids.
        completions: Of each prompt, one or several.
        packing: When prompts are packed; None: they are always padded.
        batch_size: Most prompts in a padded forward pass.
        whole: Make all logits of a pass at once. Where few tokens are scored that costs less.
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
        """Yields forward passes, context by context, of rows in any order.

        Their logits have to be taken in inference mode, too.

        Args:
            numbers: Of the prompts to read; None: all.
        """
        asked = range(len(self._prompts)) if numbers is None else numbers
        of_group = self._group_of.__getitem__
        for group, rows in groupby(sorted(asked, key=lambda row: (of_group(row), row)), of_group):
            # No name for the prefix: it would keep its keys and values while the next one is read.
            fresh = self._open(group)
            for batch in self._batches(list(rows)):
                yield self._pass(batch, fresh)
                fresh = 0

    def _open(self, group: int) -> int:
        """Reads what a context's prompts share. Gives its length, 0 if it was read last."""
        if self._prefix is not None and group == self._group:
            return 0
        self._group, self._prefix = group, None  # the one before is let go first
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
        completions = [one for number in rows for one in self._completions[number]]
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
    """What is made of the logits that decide labels.

    Each process of a launch reads its share of the prompts, and gets what all have made.

    Args:
        model: A language model, or one with a classification head.
        prompts: R whole prompts in token ids, checked.
        completions: Put after each prompt, as `LabelTokens.completions`; P tokens together.
        batch_size: Most prompts in a padded forward pass.
        advance: Told of this process's progress.
        make: Makes of some prompts' logits (rows x P, V) what is kept of them: tensors by name, in
            processor memory, whose first dimension is the rows.

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
        for one in reader.read():
            (logits_NV,) = one.logits.chunks()
            made.append(([mine[row] for row in one.rows], make(logits_NV)))
            advance(len(one.rows), one.prefix + one.batch.tokens)
    every = [batch for share in processes.gather(made) for batch in share]
    order = torch.tensor([number for numbers, _ in every for number in numbers]).argsort()
    return {name: torch.cat([batch[name] for _, batch in every])[order] for name in every[0][1]}
