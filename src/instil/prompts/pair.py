"""The aligned pair: two prompts, one completion.

Teacher and student read different prompts. The token ids of the completion are one list, which is
appended to both. Token t of the completion is predicted by the logits at the position before it,
for both models. So the first completion token and the end-of-turn token are both supervised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instil.errors import AlignmentError
from instil.system.sequences import Computed


@dataclass(frozen=True)
class AlignedPair:
    """The token ids of a training or evaluation row, for teacher and student."""

    row: int
    teacher_prompt: list[int]
    student_prompt: list[int]
    completion: list[int]

    def check(self, *, teacher_window: int | None, student_window: int | None) -> None:
        """Checks that the pair fits both models' windows; nothing is ever cut.

        Args:
            teacher_window: Longest sequence that the teacher can read, in tokens; None if it has no
                limit.
            student_window: The same for the student.

        Raises:
            AlignmentError: a part has no tokens, or the pair does not fit. The message has the row
                and the numbers.
        """
        if not self.completion:
            raise AlignmentError(
                f"row {self.row}: the completion has no tokens", mend="delete the row"
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


def teacher_prompts(pairs: Sequence[AlignedPair]) -> Sequence[list[int]]:
    """The teacher's prompts of pairs, in token ids; each is made when it is asked for."""
    return Computed(len(pairs), lambda index: pairs[index].teacher_prompt)


def check_window(
    prompt: int, completion: int, window: int | None, *, where: str, side: str, mend: str
) -> None:
    """Checks that a prompt and completion fit a model's window.

    Args:
        prompt: Tokens of the prompt.
        completion: Tokens of the completion.
        window: Longest sequence that the model can read, in tokens; None if it has no limit.
        where: The row, for the error message.
        side: The kind of prompt (`teacher` or `student`), for the error message.
        mend: What to shorten, for the error message.

    Raises:
        AlignmentError: they do not fit. The message has the numbers and the excess.
    """
    if window is None or prompt + completion <= window:
        return
    raise AlignmentError(
        f"{where}: the {side} prompt has {prompt:,} tokens and the completion {completion:,}",
        got=f"{prompt + completion:,} tokens",
        allowed=f"at most {window:,}",
        mend=f"{mend} by {prompt + completion - window:,} tokens or use a model with a longer window",
    )
