"""Batches of lessons whose labels are branches of the prompt, which the student then reads once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from typing_extensions import override

from instil.models.branches import PATHS, Branches, branch, follows, reach, way
from instil.models.forward import Logits
from instil.models.packing import even_packs
from instil.models.proof import kind, proven
from instil.training.collation import PASS_TOKENS, Collator, Lesson, Part, Together


@runtime_checkable
class BranchingLesson(Lesson, Protocol):
    """A lesson whose sequences follow one prompt."""

    prompt: list[int]
    branches: Branches


class BranchCollator(Collator):
    """Makes batches of lessons that all have the same branches.

    Args:
        rows: All lessons.
        pad_id: Fills masked positions.
    """

    def __init__(self, rows: Sequence[BranchingLesson], pad_id: int) -> None:
        super().__init__(rows, pad_id, together=Together.PADDED, masked=True, online=None)

    @override
    def _groups(self, rows: Sequence[Any], lead: int) -> list[list[int]]:
        if torch.accelerator.is_available():
            return [list(range(len(rows)))]
        tokens = [len(row.prompt) + len(row.branches.nodes) for row in rows]
        return even_packs(tokens, most=PASS_TOKENS)

    @override
    def _part(self, rows: Sequence[Any], texts: Sequence[Lesson] = (), weight: float = 0.0) -> Part:
        assert not texts  # they have no branches
        prompts = [row.prompt for row in rows]
        targets = [row.targets for row in rows]
        return Part(
            batch=branch(prompts, rows[0].branches, pad_id=self.pad_id),
            sequences=[(prompt, []) for prompt in prompts],
            targets=type(targets[0]).cat(targets),
            teacher=None,
        )


@torch.inference_mode()
def branch_collator(student: Any, rows: Sequence[Lesson], *, pad_id: int) -> BranchCollator | None:
    """Makes the collator if the lessons have several branches and the student can read them.

    Args:
        student: The model, in evaluation mode, before it is split among processes.
        rows: All lessons.
        pad_id: Fills masked positions.
    """
    branching = [row for row in rows if isinstance(row, BranchingLesson)]
    if len(branching) < len(rows) or len(branching[0].branches.paths) == 1:
        return None
    branches = branching[0].branches
    by_length = sorted((row.prompt for row in branching), key=len)
    prompts = [by_length[0], by_length[-1]]
    if len(prompts[1]) + branches.longest > reach(student):
        return None
    batch = branch(prompts, branches, pad_id=pad_id)
    found = proven(
        student,
        way(kind([len(prompt) for prompt in prompts]), prefix=False),
        batch.input_ids_BL.shape[1],
        lambda: Logits(student, batch),
        lambda logits: follows(student, prompts, branches, logits),
        instead=PATHS,
    )
    return None if found is None else BranchCollator(branching, pad_id)
