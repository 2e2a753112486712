"""What comes before training: the models, the completions that are learnt, the teacher's targets for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instil.errors import ContextError, FieldError
from instil.methods import Method
from instil.prompts.context import NO_CONTEXT, Context
from instil.prompts.format import PromptFormat
from instil.prompts.pair import AlignedPair, check_window
from instil.tasks.rows import Row

UNKNOWN_LENGTH = 256  # limit of an answer, in tokens, when no answer is known


def completion_limit(sets: Sequence[RenderedRows], known: Sequence[int], windows: Windows) -> int:
    """Limit of an answer where none is given: room to spare over the longest known one, as far as the windows allow.

    Args:
        sets: All rows that will be answered.
        known: Lengths of known answers, in tokens.
        windows: Of the models.
    """
    longest = max(known, default=0)
    limit = 2 * longest + 8 if known else UNKNOWN_LENGTH
    for window, prompts in (
        (windows.teacher, [ids for rows in sets for ids in rows.teacher_prompts]),
        (windows.student, [ids for rows in sets for ids in rows.student_prompts]),
    ):
        if window is not None:
            limit = min(limit, window - max(map(len, prompts)))
    return max(limit, longest, 1)


@dataclass(frozen=True)
class Windows:
    """Longest sequence that each side reads, in tokens; None where there is no limit."""

    teacher: int | None
    student: int | None


@dataclass(frozen=True)
class RenderedRows:
    """A set of rows as both sides see it.

    Attributes:
        name: What a row of the set is called in messages.
        rows: The rows.
        teacher_prompts: With the context, token ids.
        student_prompts: Without it.
        gold: The gold completion of each row that has one and needs it.
    """

    name: str
    rows: list[Row]
    teacher_prompts: list[list[int]]
    student_prompts: list[list[int]]
    gold: list[list[int] | None]

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
    ) -> RenderedRows:
        """Renders and tokenises rows.

        Args:
            name: What a row of the set is called in messages.
            rows: The rows.
            form: Renders the prompts.
            context: What the teacher reads: the same for all rows, or one a row.
            gold: Whether gold completions are needed.
            student: What the student reads, too.

        Raises:
            FieldError: an output cannot be a completion in this format; names the row.
        """
        contexts = [context] * len(rows) if isinstance(context, Context) else context
        completions: list[list[int] | None] = []
        for number, row in enumerate(rows, 1):
            try:
                completions.append(form.completion_ids(row) if gold and row.output else None)
            except FieldError as error:
                what = f"{name} {number}: {error.what}"
                raise FieldError(what, got=error.got, mend=error.mend) from None
        return cls(
            name=name,
            rows=list(rows),
            teacher_prompts=[
                form.prompt_ids(row.input, read) for row, read in zip(rows, contexts, strict=True)
            ],
            student_prompts=[form.prompt_ids(row.input, student) for row in rows],
            gold=completions,
        )

    def prompts(self, method: Method) -> list[list[int]]:
        """Whole prompts as this method sends them."""
        return self.teacher_prompts if method.context else self.student_prompts

    @property
    def gold_completions(self) -> list[list[int]] | None:
        """Every row's gold completion; None if a row has none."""
        known = [completion for completion in self.gold if completion is not None]
        return known if len(known) == len(self.rows) else None

    def need_gold(self) -> list[list[int]]:
        """Every row's gold completion.

        Raises:
            ContextError: names the first row without one.
        """
        if self.gold_completions is None:
            raise ContextError(
                f"completions: gold, and {self.name} {self.gold.index(None) + 1} has no output",
                got=f"{self.gold.count(None)} of {len(self.gold)} rows without output",
                mend="add the outputs, or use --completions teacher",
            )
        return self.gold_completions

    def check(self, limit: int, windows: Windows) -> None:
        """Refuses every row whose prompts, with the longest completion it may get, a model cannot read whole.

        Args:
            limit: Tokens of a completion that is yet to be written.
            windows: Of the models.

        Raises:
            AlignmentError: names the row and the numbers.
        """
        sides = (
            ("teacher", self.teacher_prompts, windows.teacher, "shorten the context"),
            ("student", self.student_prompts, windows.student, "shorten the input"),
        )
        for side, prompts, window, mend in sides:
            for number, (prompt, gold) in enumerate(zip(prompts, self.gold, strict=True), 1):
                longest = max(limit, len(gold or []))
                where = f"{self.name} {number}"
                check_window(len(prompt), longest, window, where=where, side=side, mend=mend)

    def pairs(
        self, completions: Sequence[tuple[int, list[int]]], windows: Windows
    ) -> list[AlignedPair]:
        """Both sides of each (number of a row, completion), checked.

        Raises:
            AlignmentError: a pair does not fit a model.
        """
        pairs = [
            AlignedPair(number, self.teacher_prompts[number], self.student_prompts[number], ids)
            for number, ids in completions
        ]
        for pair in pairs:
            pair.check(teacher_window=windows.teacher, student_window=windows.student)
        return pairs
