"""What models can read, and rows that are left out because they cannot read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from instil.errors import AlignmentError, InstilError
from instil.prompts.pair import check_window
from instil.results.logs import Dropped
from instil.tasks.rows import Row

if TYPE_CHECKING:
    from instil.models.load import Outline


@dataclass(frozen=True)
class Windows:
    """Longest sequence that each model can read, in tokens; None if it has no limit."""

    teacher: int | None
    student: int | None

    @classmethod
    def of(cls, teacher: Outline, student: Outline) -> Windows:
        """The windows of two models."""
        return cls(teacher=teacher.window, student=student.window)


@dataclass(frozen=True)
class Sieve:
    """Leaves out rows that the models cannot read, in place of an error.

    Attributes:
        windows: Windows of the models.
        room: Tokens that an answer must have at least.
        dropped: The rows that were left out.
    """

    windows: Windows
    room: int
    dropped: list[Dropped]

    def check(self, prompts: Mapping[str, list[int]], completion: int) -> None:
        """Refuses prompts that do not fit with their answer.

        Args:
            prompts: Side (`teacher` or `student`) -> token ids.
            completion: Tokens of the gold completion; 0 if there is none.

        Raises:
            AlignmentError: one does not fit.
        """
        windows = {"teacher": self.windows.teacher, "student": self.windows.student}
        for side, prompt in prompts.items():
            longest = max(completion, self.room)
            check_window(
                len(prompt),
                longest,
                windows[side],
                where="the row",
                side=side,
                mend="shorten the row",
            )

    def drop(self, row: Row, name: str, error: InstilError) -> None:
        """Leaves out a row because of an error."""
        where = name
        if row.turn is not None:
            where = f"{row.turn.conversation.where}, message {row.turn.number + 1}"
        reason = "too long" if isinstance(error, AlignmentError) else "template refuses"
        self.dropped.append(Dropped(where=where, reason=reason, what=str(error)))
