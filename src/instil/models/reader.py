"""Reads many prompts with completions: each shared prefix once, the rest in few passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

import numpy as np
import torch

from instil.models.attention import reads_bounds
from instil.models.batch import Batch, alone, collate, pack
from instil.models.cache import SharedPrefix, alike, packable
from instil.models.forest import LEAST_SHARED
from instil.models.forward import Logits
from instil.models.load import LanguageModel
from instil.models.packing import LONG_PREFIX, PACKED_TOKENS, packs
from instil.models.proof import FEW, KINDS, agree, kind, lengthened, proven, refused
from instil.system.sequences import Computed, common


class Way(StrEnum):
    """How rows share a forward pass, the fastest first. The words follow "the model cannot"."""

    PACKED = "read {} packed into one"
    SHARED = "read {}"
    PADDED = "read {} together"

    def of(self, rows: str, *, prefix: bool) -> str:
        """The words for a kind of rows, with or without a shared prefix before them."""
        return self.format(rows) + (" after a shared prefix" if prefix else "")

    def refused(self, network: torch.nn.Module, *, prefix: bool) -> bool:
        """Whether the model was found to do this wrong, with some kind of rows."""
        return refused(network, *(self.of(rows, prefix=prefix) for rows in KINDS))

    @property
    def instead(self) -> str:
        """What is done when a model cannot do this."""
        return {
            Way.PACKED: "rows are padded, which takes longer",
            Way.SHARED: "the context is read again for each row, which takes longer",
            Way.PADDED: "rows are read one at a time, which takes longer",
        }[self]


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
        self._packable = (
            packing is not None
            and (packing.masked or reads_bounds(model.network))
            and packable(model.network)
        )

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
            # while the next prefix is read. The same holds for a pass.
            fresh, left = self._open(group), list(rows)
            while left:
                done: set[int] = set()
                for batch in self._batches(left):
                    made = self._pass(batch, fresh)
                    if made is None:  # the way was wrong; the rest goes another way
                        self._read_prefix()
                        break
                    done.update(batch)
                    fresh = 0
                    yield made
                    del made
                left = [row for row in left if row not in done]

    def _open(self, group: int) -> int:
        """Reads the tokens that a context's prompts share.

        Returns:
            Their number; 0 if this context was read last and is still in memory.
        """
        if self._prefix is not None and group == self._group:
            return 0
        self._group = group
        return self._read_prefix()

    def _read_prefix(self) -> int:
        network, of_group = self._model.network, self._groups[self._group]
        self._prefix = None  # free the previous prefix first
        packs = self._packable and not Way.PACKED.refused(network, prefix=True)
        shares = packs or not Way.SHARED.refused(network, prefix=True)
        prompts = Computed.picked(self._prompts, of_group)
        self._prefix = SharedPrefix(network, prompts if shares else [])
        if self._way is Way.SHARED and Way.SHARED.refused(network, prefix=True):
            self._prefix = SharedPrefix(network, [])
        return self._prefix.length

    @property
    def _way(self) -> Way:
        """The fastest way that this model was not found to do wrong."""
        network, packing, prefix = self._model.network, self._packing, self._prefix
        assert prefix is not None
        shared = prefix.length > 0
        long_enough = packing is not None and prefix.length >= packing.prefix
        if self._packable and long_enough and not Way.PACKED.refused(network, prefix=shared):
            return Way.PACKED
        return Way.SHARED if shared else Way.PADDED

    def _batches(self, rows: list[int]) -> Iterator[list[int]]:
        """The rows of each forward pass."""
        way = self._way
        assert self._prefix is not None
        shared, own, scored = self._prefix.length, [], []
        packed, known = self._packing is not None and way is Way.PACKED, list[int]()
        before = np.empty(0, np.int32)
        for number in rows:
            lengths = [len(completion) for completion in self._completions[number]]
            prompt = np.array(self._prompts[number][shared:] if packed else [], np.int32)
            alike, before = common(before, prompt), prompt
            known.append(alike if alike >= LEAST_SHARED else 0)
            own.append((len(self._prompts[number]) - shared + max(lengths)) * len(lengths))
            scored.append(sum(lengths))
        if self._packing is not None and packed:
            batches = packs(own, known, most=self._packing.tokens)
        else:
            whole = [shared + length for length in own]
            batches = self._prefix.batches(whole, batch_size=self._batch_size, scored=scored)
        for batch in batches:
            yield [rows[i] for i in batch]

    @torch.inference_mode()
    def _pass(self, rows: list[int], fresh: int) -> Pass | None:
        """Reads some rows; None if the way in which they were to be read is wrong for the model."""
        way, network, prefix = self._way, self._model.network, self._prefix
        assert prefix is not None
        prompts = [self._prompts[number] for number in rows for _ in self._completions[number]]
        completions = [completion for number in rows for completion in self._completions[number]]
        packed, shared = way is Way.PACKED, prefix.length > 0

        def batch_of(prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Batch:
            if packed:
                masked = not reads_bounds(network)
                return pack(prompts, completions, prefix=prefix.length, masked=masked)
            return collate(prompts, completions, pad_id=self._model.pad_id, prefix=prefix.length)

        def read(batch: Batch) -> Logits:
            cache = prefix.lent if packed else lambda: nullcontext(prefix.cache(len(prompts)))
            return Logits(network, batch, cache=cache, whole=self._whole)

        batch = batch_of(prompts, completions)
        if way is Way.PADDED:
            made = read_rows(self._model, prompts, completions, whole=self._whole)
            return Pass(rows, batch, made, fresh)

        sequences = list(zip(prompts, completions, strict=True))
        lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
        logits = proven(
            network,
            way.of(kind(lengths), prefix=shared),
            prefix.length + batch.input_ids_BL.shape[1],
            lambda: read(batch),
            lambda logits: _as_alone(
                network, sequences, logits, lambda *rows: read(batch_of(*rows)), least=prefix.length
            ),
            instead=way.instead,
        )
        return None if logits is None else Pass(rows, batch, logits, fresh)


def read_rows(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    *,
    whole: bool = False,
) -> Logits:
    """The logits of rows that share no prefix, in one padded pass, or row by row.

    Args:
        model: The model. The caller turns an adapter on or off.
        prompts: Full prompts in token ids.
        completions: One completion per prompt.
        whole: Compute all logits at once.
    """
    network, sequences = model.network, list(zip(prompts, completions, strict=True))

    def read(prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Logits:
        return Logits(network, collate(prompts, completions, pad_id=model.pad_id), whole=whole)

    if len(prompts) > 1:
        lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
        logits = proven(
            network,
            Way.PADDED.of(kind(lengths), prefix=False),
            max(lengths),
            lambda: read(prompts, completions),
            lambda logits: _as_alone(network, sequences, logits, read),
            instead=Way.PADDED.instead,
        )
        if logits is not None:
            return logits
    return Logits.cat([Logits(network, alone(*one), whole=whole) for one in sequences])


def _as_alone(
    network: torch.nn.Module,
    sequences: Sequence[tuple[list[int], list[int]]],
    logits: Logits,
    read: Callable[[Sequence[list[int]], Sequence[list[int]]], Logits],
    *,
    least: int = 0,
) -> bool:
    """Whether rows that were read together have the logits of plain forward passes.

    Args:
        network: The model.
        sequences: Prompts with their completions, in token ids.
        logits: Those of the completions.
        read: Reads prompts and completions in the same way. If completions are short, they are read
            again with a part of the prompt, which proves more.
        least: A prompt keeps more tokens than this.
    """
    if min(len(completion) for _, completion in sequences) >= FEW:
        return agree(network, sequences, logits.part)
    longer = [lengthened(*sequence, least=least) for sequence in sequences]
    prompts, completions = zip(*longer, strict=True)
    return agree(network, longer, read(prompts, completions).part)
