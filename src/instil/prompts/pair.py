"""The aligned pair: two prompts, one completion.

Teacher and student see different prompts. The completion's token ids are one list, appended to both. Token t of it is
predicted by the logits at the position before it, on both sides; so the first completion token and the token that ends
the turn are both supervised.
"""

from __future__ import annotations

from dataclasses import dataclass

from instil.errors import AlignmentError


@dataclass(frozen=True)
class AlignedPair:
    """One training or evaluation row as both sides see it, in token ids."""

    row: int
    teacher_prompt: list[int]
    student_prompt: list[int]
    completion: list[int]

    def check(self, *, teacher_window: int | None, student_window: int | None) -> None:
        """Refuses a pair that a model cannot read whole; nothing is ever cut.

        Args:
            teacher_window: Longest sequence that the teacher reads, in tokens; None if it has no limit.
            student_window: The same for the student.

        Raises:
            AlignmentError: names the row, the numbers and the excess.
        """
        if not self.completion:
            raise AlignmentError(
                f"row {self.row}: the completion has no tokens", mend="drop the row"
            )
        sides = (
            ("teacher", self.teacher_prompt, teacher_window, "shorten the context"),
            ("student", self.student_prompt, student_window, "shorten the input"),
        )
        for side, prompt, window, mend in sides:
            if not prompt:
                raise AlignmentError(
                    f"row {self.row}: the {side} prompt has no tokens",
                    mend="use a pattern with text before {input}",
                )
            check_window(
                len(prompt),
                len(self.completion),
                window,
                where=f"row {self.row}",
                side=side,
                mend=mend,
            )


def check_window(
    prompt: int, completion: int, window: int | None, *, where: str, side: str, mend: str
) -> None:
    """Refuses a prompt and completion longer than the window.

    Args:
        prompt: Tokens of the prompt.
        completion: Tokens of the completion.
        window: Longest sequence that the model reads, in tokens; None if it has no limit.
        where: Which row, for the message.
        side: `teacher` or `student`, for the message.
        mend: What to shorten, for the message.

    Raises:
        AlignmentError: with the numbers and the excess.
    """
    if window is None or prompt + completion <= window:
        return
    raise AlignmentError(
        f"{where}: the {side} prompt has {prompt:,} tokens and the completion {completion:,}",
        got=f"{prompt + completion:,} tokens",
        allowed=f"{window:,}",
        mend=f"{mend} by {prompt + completion - window:,} tokens or use a model with a longer window",
    )
