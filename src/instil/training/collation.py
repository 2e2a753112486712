"""The data of training: lessons, and the parts of a batch that go through the model at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Protocol

import torch

from instil.errors import TuningError
from instil.models.attention import LENGTHS, reads_bounds
from instil.models.batch import Batch, alone, collate, pack, shared_prefix
from instil.models.cache import packable
from instil.models.forest import LEAST_SHARED, merged
from instil.models.forward import Logits
from instil.models.packing import even_packs
from instil.models.proof import agree, lengthened, proven
from instil.system import processes

# Most tokens of a pack with a mask, where attention grows with the square of the length.
LONGEST_PACK = 1024
# Tokens of one pass on a processor: 384 are slower, and more only take more memory.
PASS_TOKENS = 512
# Most lessons whose lengths are looked at, to find long ones.
SAMPLED = 256
# Most tokens of a pack whose sequences are attended to one by one.
MOST_PACKED = 16_384


class Lesson(Protocol):
    """One training row."""

    @property
    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """The (prompt, completion) pairs of this row that the student reads, in token ids."""

    @property
    def terms(self) -> int:
        """Number of terms that the row adds to the loss. The loss is the mean of all terms."""

    @property
    def teacher_prompt(self) -> list[int] | None:
        """The prompt of an online teacher, in token ids; None without an online teacher."""

    @property
    def targets(self) -> Any:
        """What the objective compares the student with, of a type with `cat` and `to`; or None."""


class HiddenStates(Protocol):
    """A teacher that runs during training, such as `instil.teacher.hidden_states.OnlineTeacher`."""

    def collate(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]]
    ) -> list[Batch]:
        """Batches of teacher prompts with their completions."""

    def hidden_states(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """Hidden states (N, D) of every layer, at the positions that predict a completion token."""


class Numbers(torch.utils.data.Dataset[int]):
    """Numbers of the lessons to train on. The collator reads only the lessons of its own process."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        return self.numbers[index]


@dataclass(frozen=True)
class Part:
    """The part of a batch that goes through the model at once.

    Attributes:
        batch: For the student.
        sequences: The prompts and completions of the batch, in token ids.
        targets: For the completions; None if the loss needs no targets.
        teacher: The same completions for an online teacher; None without an online teacher.
        kept: The kept texts at the end of the batch; None if it has none.
    """

    batch: Batch
    sequences: list[tuple[list[int], list[int]]]
    targets: Any
    teacher: list[Batch] | None
    kept: KeptTokens | None = None


@dataclass(frozen=True)
class KeptTokens:
    """The completion tokens of kept texts in a part. They come after those of its lessons.

    Attributes:
        start: Number of completion tokens before them.
        weight: Weight of each of them in the loss of a batch.
        targets: The base's predictions.
    """

    start: int
    weight: float
    targets: Any


class Together(StrEnum):
    """How lessons share a forward pass, the fastest first. The words follow "the model cannot"."""

    PACKED = "train on rows packed into one"
    PADDED = "train on padded rows"
    ALONE = "train on one row at a time"

    @property
    def instead(self) -> str:
        """What is done when a model cannot do this."""
        packed = self is Together.PACKED
        rows = "rows are padded" if packed else "rows are trained on one at a time"
        return f"{rows}, which takes longer"


class Collator:
    """Makes batches of lessons.

    Args:
        rows: All lessons.
        pad_id: Fills masked positions.
        together: How lessons share a forward pass.
        masked: Separate the lessons of a packed row by a mask.
        online: An online teacher; the batches then also hold the lessons' teacher prompts.
    """

    def __init__(
        self,
        rows: Sequence[Lesson],
        pad_id: int,
        *,
        together: Together,
        masked: bool,
        online: HiddenStates | None,
    ) -> None:
        self.rows = rows
        self.pad_id = pad_id
        self.together = together
        self.masked = masked
        self.longest = LONGEST_PACK if masked else MOST_PACKED
        self.online = online
        # On a processor, small passes cost no more than large passes, but each new length costs.
        packed = together is Together.PACKED
        self.on_processor = packed and not masked and not torch.accelerator.is_available()

    def __call__(
        self, numbers: Sequence[int], texts: Sequence[Lesson] = (), weight: float = 0.0
    ) -> dict[str, Any]:
        """The parts of this process's share of a batch; labels only give the number of terms.

        Args:
            numbers: Numbers of the batch's lessons, over all processes.
            texts: Kept texts of this process, which are added to the batch.
            weight: Weight of each of their tokens.
        """
        mine = numbers[processes.rank() :: processes.count()]
        # The last batch may be too short to give every process a row. A process without a row reads
        # a row with weight 0, because all processes must take part in every backward pass.
        rows = [self.rows[number] for number in mine or numbers[:1]]
        # Only the number of labels is used: the Trainer divides by it. `shift_labels` says that the
        # labels need no shift by one position.
        terms = torch.zeros(sum(row.terms for row in rows) if mine else 0, dtype=torch.long)
        lead = self._lead(rows)
        *groups, last = ([rows[i] for i in group] for group in self._groups(rows, lead))
        parts = [self._part(group) for group in groups]
        if not texts or self._fits([*last, *texts]):
            parts.append(self._part(last, texts, weight))
        else:
            parts += [self._part(last), *self.alone(texts, weight)]
        return {
            "parts": parts,
            "weight": 1.0 if mine else 0.0,
            "labels": terms,
            "shift_labels": terms,
        }

    def _lead(self, rows: Sequence[Lesson]) -> int:
        """Number of leading tokens that all prompts share; a pack has them once."""
        if self.together is not Together.PACKED:
            return 0
        lead = shared_prefix([prompt for row in rows for prompt, _ in row.sequences])
        return lead if lead >= LEAST_SHARED else 0

    def _groups(self, rows: Sequence[Lesson], lead: int) -> list[list[int]]:
        """The rows of each forward pass."""
        if self.together is Together.ALONE:
            return [[number] for number in range(len(rows))]
        if not self.on_processor:
            return [list(range(len(rows)))]
        tokens = [merged(row.sequences).tokens - lead for row in rows]
        return even_packs(tokens, most=max(1, PASS_TOKENS - lead))

    def _fits(self, rows: Sequence[Lesson]) -> bool:
        """Whether rows and kept texts go through the model together."""
        if self.together is not Together.PACKED or self.masked or self.online is not None:
            return False
        tokens = merged([pair for row in rows for pair in row.sequences]).tokens
        return tokens <= (PASS_TOKENS if self.on_processor else self.longest)

    def alone(self, texts: Sequence[Lesson], weight: float) -> list[Part]:
        """Kept texts in parts of their own.

        Args:
            texts: The texts.
            weight: Weight of each of their tokens.
        """
        groups = self._groups(texts, 0)
        if processes.count() > 1 and self.together is not Together.ALONE:
            groups = [[*range(len(texts))]]  # under FSDP, all processes must make as many passes
        return [self._part([], [texts[i] for i in group], weight) for group in groups]

    def _part(
        self, rows: Sequence[Lesson], texts: Sequence[Lesson] = (), weight: float = 0.0
    ) -> Part:
        sequences = [pair for row in rows for pair in row.sequences]
        start = sum(len(completion) for _, completion in sequences)
        sequences += [pair for text in texts for pair in text.sequences]
        prompts, completions = zip(*sequences, strict=True)
        packed = self.together is Together.PACKED
        if self.together is Together.ALONE:
            batch = alone(*sequences[0])
        elif packed and merged(sequences).tokens <= self.longest:
            multiple = LENGTHS if self.on_processor else 1
            batch = pack(prompts, completions, masked=self.masked, multiple=multiple)
        else:
            batch = collate(prompts, completions, pad_id=self.pad_id)
        targets = [row.targets for row in rows if row.targets is not None]
        teacher = None
        if self.online is not None and rows:
            teacher = self.online.collate([row.teacher_prompt or [] for row in rows], completions)
        kept = None
        if texts:
            kept = KeptTokens(start, weight, _joined([text.targets for text in texts]))
        return Part(batch, sequences, _joined(targets), teacher, kept)


def _joined(targets: Sequence[Any]) -> Any:
    """Targets of several rows as one; None if there are none."""
    known = [one for one in targets if one is not None]
    return type(known[0]).cat(known) if known else None


@dataclass(frozen=True)
class _Trial:
    """A lesson with longer completions, so that more of its tokens can be compared."""

    sequences: list[tuple[list[int], list[int]]]
    terms: int = 0
    teacher_prompt: None = None
    targets: None = None


def proven_collator(
    student: Any,
    rows: Sequence[Lesson],
    *,
    batch_size: int,
    pad_id: int,
    online: HiddenStates | None,
    texts: Sequence[Lesson] = (),
) -> Collator:
    """The fastest collator whose batches the student reads as it reads each lesson alone.

    Args:
        student: The model, in evaluation mode, before it is split among processes.
        rows: All lessons.
        batch_size: Lessons of a batch.
        pad_id: Fills masked positions.
        online: An online teacher, if there is one.
        texts: Kept texts that are added to a batch.

    Raises:
        TuningError: lessons of several sequences must be read together, and the student cannot.
    """
    masked = not reads_bounds(student)
    some = [rows[i] for i in range(0, len(rows), math.ceil(len(rows) / SAMPLED))]
    first = [rows[i] for i in range(min(batch_size, len(rows)))]
    longest = sorted(some, key=lambda row: sum(len(p) + len(c) for p, c in row.sequences))
    batches = [first, longest[-batch_size:]]
    for together in (Together.PACKED, Together.PADDED):
        packed = together is Together.PACKED
        if (not packed or packable(student)) and all(
            _right(student, batch, together, masked=masked, pad_id=pad_id, texts=texts)
            for batch in batches
        ):
            break
    else:
        together = Together.ALONE
        if any(len(row.sequences) > 1 for row in some):
            raise TuningError(
                f"{type(student).__name__} cannot be trained on the labels of a row together",
                got="other predictions for padded rows than for each row alone",
                mend="use another model, or a task with written answers",
            )
    return Collator(rows, pad_id, together=together, masked=masked, online=online)


@torch.inference_mode()
def _right(
    student: Any,
    lessons: Sequence[Lesson],
    together: Together,
    *,
    masked: bool,
    pad_id: int,
    texts: Sequence[Lesson],
) -> bool:
    """Whether the student reads these lessons together as it reads each alone.

    A pack that does not fit is padded. Then these lessons must be right when they are padded, and
    some of them when they are packed.
    """
    trials, added = (
        [_Trial([lengthened(*pair) for pair in row.sequences]) for row in rows]
        for rows in (lessons, texts)
    )
    collator = Collator(trials, pad_id, together=together, masked=masked, online=None)
    parts = collator(range(len(trials)), added)["parts"]
    of_lessons = [part for part in parts if part.kept is None or part.kept.start]
    if together is Together.PACKED and any(len(part.batch.input_ids_BL) > 1 for part in of_lessons):
        fewer = lessons[: len(lessons) // 2]
        right = partial(_right, student, masked=masked, pad_id=pad_id, texts=texts)
        padded = len(fewer) > 1 and right(lessons, Together.PADDED)
        return padded and right(fewer, Together.PACKED)
    several = max(range(len(parts)), key=lambda n: len(parts[n].sequences))
    chosen = [parts[n] for n in sorted({several, len(parts) - 1})]

    def read() -> list[Logits]:
        return [Logits(student, part.batch) for part in chosen]

    def holds(made: list[Logits]) -> bool:
        return all(
            agree(student, part.sequences, logits.part)
            for part, logits in zip(chosen, made, strict=True)
        )

    size = max(part.batch.tokens for part in chosen)
    return proven(student, together, size, read, holds, instead=together.instead) is not None
