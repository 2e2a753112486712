"""What training reads: lessons, and the parts of a batch that go through the model at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from instil.models.attention import LENGTHS
from instil.models.batch import Batch, collate, pack, shared_prefix
from instil.models.packing import even_packs
from instil.system import processes

LONGEST_PACK = 1024  # tokens under a mask, where attention grows with the square of all of them
PASS_TOKENS = 512  # of one pass on a processor; 384 are slower, more only take more memory
MOST_PACKED = 16_384  # tokens whose sequences are attended to one by one


class Lesson(Protocol):
    """One training row."""

    @property
    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """(prompt, completion) pairs in token ids that the student reads for it."""

    @property
    def terms(self) -> int:
        """Terms that it adds to the loss, which is their mean."""

    @property
    def teacher_prompt(self) -> list[int] | None:
        """What an online teacher reads before the completion, in token ids; None where there is no such teacher."""

    @property
    def targets(self) -> Any:
        """What its objective compares the student with; of a type with `cat` and `to`. None: nothing."""


class HiddenStates(Protocol):
    """A teacher that runs beside the student; `instil.teacher.hidden_states.OnlineTeacher` is one."""

    def collate(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Batch:
        """A batch of teacher prompts with their completions."""

    def hidden_states(self, batch: Batch) -> list[torch.Tensor]:
        """The hidden states (N, D) of every layer at the positions that predict a completion token."""


class Numbers(torch.utils.data.Dataset[int]):
    """Numbers of lessons: the collator reads those lessons alone that its process learns from."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> int:
        return index


@dataclass(frozen=True)
class Part:
    """What goes through the model at once.

    Attributes:
        batch: For the student.
        targets: Of the completions; None if the loss needs none.
        teacher: The same completions for an online teacher; None without one.
    """

    batch: Batch
    targets: Any
    teacher: Batch | None


class Collator:
    """Makes batches of lessons.

    Args:
        rows: All of them.
        pad_id: Fills masked positions.
        packed: Put several lessons into one row.
        masked: A mask is what keeps them apart there.
        online: Wants the lessons' teacher prompts, too.
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
        # On a processor small passes cost no more than large ones, and new lengths do.
        self.on_processor = packed and not masked and not torch.accelerator.is_available()

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The parts of this process's share of a batch; and labels, for their number."""
        mine = numbers[processes.rank() :: processes.count()]
        # Who gets no row of a last, short batch reads one that counts nothing: all meet in every backward pass.
        rows = [self.rows[number] for number in mine or numbers[:1]]
        # Only counted: the Trainer divides by their number. They are in place already, not one late.
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
        """Leading tokens that all prompts share, such as a template's, and that a pack holds once."""
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
        prompts, completions = zip(*(pair for row in rows for pair in row.sequences), strict=True)
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
        return Part(batch, type(targets[0]).cat(targets) if targets else None, teacher)
