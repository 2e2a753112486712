"""The data of training: lessons, and the parts of a batch that go through the model at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from instil.errors import TuningError
from instil.models.attention import LENGTHS, reads_bounds
from instil.models.batch import Batch, collate, pack, shared_prefix
from instil.models.cache import packable
from instil.models.forward import Logits
from instil.models.packing import even_packs
from instil.models.proof import agree, proven
from instil.system import processes

# Most tokens of a pack with a mask, where attention grows with the square of the length.
LONGEST_PACK = 1024
# Tokens of one pass on a processor: 384 are slower, and more only take more memory.
PASS_TOKENS = 512
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

    def collate(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Batch:
        """A batch of teacher prompts with their completions."""

    def hidden_states(self, batch: Batch) -> list[torch.Tensor]:
        """Hidden states (N, D) of every layer, at the positions that predict a completion token."""


class Numbers(torch.utils.data.Dataset[int]):
    """Numbers of lessons. The collator reads only the lessons of its own process."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> int:
        return index


@dataclass(frozen=True)
class Part:
    """The part of a batch that goes through the model at once.

    Attributes:
        batch: For the student.
        sequences: The prompts and completions of the batch, in token ids.
        targets: For the completions; None if the loss needs no targets.
        teacher: The same completions for an online teacher; None without an online teacher.
    """

    batch: Batch
    sequences: list[tuple[list[int], list[int]]]
    targets: Any
    teacher: Batch | None


class Collator:
    """Makes batches of lessons.

    Args:
        rows: All lessons.
        pad_id: Fills masked positions.
        packed: Put several lessons into one row.
        masked: Separate the lessons of a packed row by a mask.
        online: An online teacher; the batches then also hold the lessons' teacher prompts.
    """

    def __init__(
        self,
        rows: Sequence[Lesson],
        pad_id: int,
        *,
        packed: bool,
        masked: bool,
        online: HiddenStates | None,
    ) -> None:
        self.rows = rows
        self.pad_id = pad_id
        self.packed = packed
        self.masked = masked
        self.longest = LONGEST_PACK if masked else MOST_PACKED
        self.online = online
        # On a processor, small passes cost no more than large passes, but each new length costs.
        self.on_processor = packed and not masked and not torch.accelerator.is_available()

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The parts of this process's share of a batch; labels only give the number of terms."""
        mine = numbers[processes.rank() :: processes.count()]
        # The last batch may be too short to give every process a row. A process without a row reads
        # a row with weight 0, because all processes must take part in every backward pass.
        rows = [self.rows[number] for number in mine or numbers[:1]]
        # Only the number of labels is used: the Trainer divides by it. `shift_labels` says that the
        # labels need no shift by one position.
        terms = torch.zeros(sum(row.terms for row in rows) if mine else 0, dtype=torch.long)
        lead = self._lead(rows)
        return {
            "parts": [
                self._part([rows[i] for i in group], lead) for group in self._groups(rows, lead)
            ],
            "weight": 1.0 if mine else 0.0,
            "labels": terms,
            "shift_labels": terms,
        }

    def _lead(self, rows: Sequence[Lesson]) -> int:
        """Number of leading tokens that all prompts share; a pack has them once."""
        if not self.packed or self.masked:
            return 0
        return shared_prefix([prompt for row in rows for prompt, _ in row.sequences])

    def _groups(self, rows: Sequence[Lesson], lead: int) -> list[list[int]]:
        """The rows of each forward pass."""
        if not self.on_processor:
            return [list(range(len(rows)))]
        tokens = [sum(len(p) - lead + len(c) for p, c in row.sequences) for row in rows]
        return even_packs(tokens, most=max(1, PASS_TOKENS - lead))

    def _part(self, rows: Sequence[Lesson], lead: int) -> Part:
        sequences = [pair for row in rows for pair in row.sequences]
        prompts, completions = zip(*sequences, strict=True)
        fits = sum(map(len, prompts)) + sum(map(len, completions)) <= self.longest
        if self.packed and fits:
            multiple = LENGTHS if self.on_processor else 1
            batch = pack(prompts, completions, masked=self.masked, multiple=multiple, lead=lead)
        else:
            batch = collate(prompts, completions, pad_id=self.pad_id)
        targets = [row.targets for row in rows if row.targets is not None]
        teacher = None
        if self.online is not None:
            teacher = self.online.collate([row.teacher_prompt or [] for row in rows], completions)
        return Part(batch, sequences, type(targets[0]).cat(targets) if targets else None, teacher)


def proven_collator(
    student: Any,
    rows: Sequence[Lesson],
    *,
    batch_size: int,
    pad_id: int,
    online: HiddenStates | None,
) -> Collator:
    """Packs lessons if the student reads a packed batch as it reads each lesson alone, or pads them.

    Args:
        student: The model, in evaluation mode, before it is split among processes.
        rows: All lessons.
        batch_size: Lessons of a batch.
        pad_id: Fills masked positions.
        online: An online teacher, if there is one.

    Raises:
        TuningError: the student reads neither packed nor padded lessons right.
    """
    ways = {
        "train on packed rows": "rows are padded, which takes longer",
        "train on padded rows": "it cannot be trained",
    }
    for way, instead in ways.items():
        packed = way == "train on packed rows"
        if packed and not packable(student):
            continue
        masked = not reads_bounds(student)
        collator = Collator(rows, pad_id, packed=packed, masked=masked, online=online)

        def read(collator: Collator = collator) -> list[tuple[Part, Logits]]:
            parts = collator(range(min(batch_size, len(rows))))["parts"]
            fullest = max(parts, key=lambda part: len(part.sequences))
            return [(part, Logits(student, part.batch)) for part in (fullest, parts[-1])]

        def holds(made: list[tuple[Part, Logits]]) -> bool:
            return all(agree(student, part.sequences, logits.part) for part, logits in made)

        with torch.inference_mode():
            if proven(student, way, 1, read, holds, instead=instead):
                return collator
    raise TuningError(
        f"{type(student).__name__} cannot be trained on several rows at once",
        got="other predictions for padded rows than for each row alone",
        mend="use another model",
    )
