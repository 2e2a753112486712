"""Sets of rows, rendered as token ids for teacher and student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, cast

from instil.errors import ContextError
from instil.methods import Method
from instil.prompts.context import NO_CONTEXT, Context
from instil.prompts.format import PromptFormat
from instil.prompts.pair import AlignedPair, check_window
from instil.prompts.shares import Renderer
from instil.prompts.windows import Sieve, Windows
from instil.system.sequences import Computed, lengths
from instil.tasks.rows import Row

if TYPE_CHECKING:
    from instil.models.load import Outline

UNKNOWN_LENGTH = 256  # maximum tokens of an answer if no answer is known
THOUGHT_LENGTH = 1024  # more tokens for what a model thinks before its answer


def completion_limit(
    sets: Sequence[RenderedRows],
    known: Sequence[int],
    windows: Windows,
    *,
    thinks: bool = False,
) -> int:
    """The default for the maximum length of an answer, in tokens.

    It is about twice the longest known answer, or less if the windows are too small.

    Args:
        sets: All rows that will be answered.
        known: Lengths of the known answers, in tokens.
        windows: Windows of the models.
        thinks: Whether the model may think before it answers.
    """
    longest = max(known, default=0)
    limit = 2 * longest + 8 if known else UNKNOWN_LENGTH
    if thinks:
        limit += THOUGHT_LENGTH
    for window, prompts in (
        (windows.teacher, (rows.teacher_prompts for rows in sets)),
        (windows.student, (rows.student_prompts for rows in sets)),
    ):
        if window is not None:
            limit = min(limit, window - max(chain.from_iterable(map(lengths, prompts))))
    return max(limit, longest, 1)


@dataclass(frozen=True)
class RenderedRows:
    """A set of rows, rendered for teacher and student.

    Attributes:
        name: Name for a row of the set in error messages.
        rows: The rows.
        teacher_prompts: Token ids of the prompts with the context.
        student_prompts: Token ids of the prompts without it.
        gold: Gold completion of each row; None if it has none or none is needed.
    """

    name: str
    rows: list[Row]
    teacher_prompts: Sequence[list[int]]
    student_prompts: Sequence[list[int]]
    gold: Sequence[list[int] | None]

    @classmethod
    def of(
        cls,
        name: str,
        rows: Sequence[Row],
        form: PromptFormat,
        context: Context | Sequence[Context],
        *,
        gold: bool,
        student: Context = NO_CONTEXT,
        sieve: Sieve | None = None,
    ) -> RenderedRows:
        """Renders and tokenises rows.

        Args:
            name: Name for a row of the set in error messages.
            rows: The rows.
            form: Prompt format.
            context: The teacher's context: the same for all rows, or one context per row.
            gold: Whether gold completions are needed.
            student: Context that the student reads too.
            sieve: Leaves out rows that cannot be read; None: they are errors.

        Raises:
            FieldError: an output cannot be a completion in this format. The message has the row.
            ChatTemplateError: the template does not accept the turns. The message has the row.
        """
        contexts = [context] * len(rows) if isinstance(context, Context) else context
        made = Renderer(name, form, rows, contexts, student, gold, sieve).whole()
        if sieve is not None:
            sieve.dropped.extend(made.dropped)
        # A call of a tool is written in a form of its own.
        shown = [
            replace(rows[number], output=made.written[number])
            if number in made.written
            else rows[number]
            for number in made.numbers
        ]
        return cls(name, shown, made.teacher, made.student, made.gold)

    def prompts(self, method: Method) -> Sequence[list[int]]:
        """The prompts that a method uses."""
        return self.teacher_prompts if method.context else self.student_prompts

    @property
    def gold_completions(self) -> Sequence[list[int]] | None:
        """The gold completions of all rows; None if a row has none."""
        if any(completion is None for completion in self.gold):
            return None
        return cast("Sequence[list[int]]", self.gold)

    def need_gold(self) -> Sequence[list[int]]:
        """The gold completions of all rows.

        Raises:
            ContextError: a row has none. The message has the first such row.
        """
        known = self.gold_completions
        if known is None:
            raise ContextError(
                f"completions are gold, but {self.name} {self.gold.index(None) + 1} has no output",
                got=f"{self.gold.count(None)} of {len(self.gold)} rows have no output",
                mend="add the outputs, or pass --completions teacher",
            )
        return known

    def gold_of_rows(self) -> Sequence[tuple[int, list[int]]]:
        """The number of each row, with its gold completion, which is read when it is asked for.

        Raises:
            ContextError: a row has none. The message has the first such row.
        """
        known = self.need_gold()
        return Computed(len(known), lambda number: (number, known[number]))

    def check_ids(self, teacher: Outline, student: Outline) -> None:
        """Checks that the models have an embedding for every token of the prompts and gold outputs.

        Args:
            teacher: The model that reads the context.
            student: The model that does not.

        Raises:
            UnknownModelError: a token has none. The message has the row.
        """
        teacher.check_ids(self.teacher_prompts, where=f"the teacher's prompt of {self.name}")
        student.check_ids(self.student_prompts, where=f"the student's prompt of {self.name}")
        student.check_ids((ids or [] for ids in self.gold), where=f"the output of {self.name}")

    def check(self, limit: int, windows: Windows) -> None:
        """Checks that the prompts fit the models' windows with the longest possible completion.

        Args:
            limit: Maximum tokens of a completion that will be generated.
            windows: Windows of the models.

        Raises:
            AlignmentError: a row does not fit. The message has the row and the numbers.
        """
        sides = (
            ("teacher", self.teacher_prompts, windows.teacher, "shorten the context"),
            ("student", self.student_prompts, windows.student, "shorten the input"),
        )
        answers = lengths(self.gold)
        for side, prompts, window, mend in sides:
            pairs = zip(lengths(prompts), answers, strict=True)
            for number, (prompt, answer) in enumerate(pairs, 1):
                where, longest = f"{self.name} {number}", max(limit, answer)
                check_window(prompt, longest, window, where=where, side=side, mend=mend)

    def pairs(
        self, completions: Sequence[tuple[int, list[int]]], windows: Windows
    ) -> Sequence[AlignedPair]:
        """Makes checked pairs from (number of a row, completion), in the order of their rows.

        Raises:
            AlignmentError: a pair does not fit a model.
        """
        if not isinstance(completions, Computed):  # those of `gold_of_rows` are in order
            completions = sorted(completions)

        def pair_at(index: int) -> AlignedPair:
            row, ids = completions[index]
            return AlignedPair(row, self.teacher_prompts[row], self.student_prompts[row], ids)

        pairs = Computed(len(completions), pair_at)
        for pair in pairs:
            pair.check(teacher_window=windows.teacher, student_window=windows.student)
        return pairs
