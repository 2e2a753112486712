"""Sets of rows, rendered as token ids for teacher and student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from instil.errors import AlignmentError, ChatTemplateError, ContextError, FieldError, InstilError
from instil.methods import Method
from instil.prompts.context import NO_CONTEXT, Context
from instil.prompts.format import PromptFormat
from instil.prompts.pair import AlignedPair, check_window
from instil.results.logs import Dropped
from instil.system.sequences import Computed, TokenLists
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
            limit = min(limit, window - max(map(len, chain.from_iterable(prompts))))
    return max(limit, longest, 1)


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
        sides = {"teacher": TokenLists(), "student": TokenLists()}
        completions: list[list[int] | None] = []
        shown: list[Row] = []
        for number, (row, of_row) in enumerate(zip(rows, contexts, strict=True), 1):
            reads = {"teacher": of_row, "student": student}
            try:
                ids = form.completion_ids(row) if gold and row.output else None
                prompts = {side: form.prompt_ids(row, read) for side, read in reads.items()}
                if sieve is not None:
                    sieve.check(prompts, len(ids or []))
            except (FieldError, ChatTemplateError, AlignmentError) as error:
                if sieve is None:
                    error.what = f"{name} {number}: {error.what}"
                    raise
                sieve.drop(row, f"{name} {number}", error)
                continue
            for side, prompt in prompts.items():
                # The caller holds the contexts and rows, so no two of them have the same id.
                sides[side].add(prompt, key=id(reads[side]), follows=row.conversation)
            completions.append(ids)
            shown.append(_as_written(row, form, ids))
        return cls(
            name=name,
            rows=shown,
            teacher_prompts=sides["teacher"],
            student_prompts=sides["student"],
            gold=completions,
        )

    def prompts(self, method: Method) -> Sequence[list[int]]:
        """The prompts that a method uses."""
        return self.teacher_prompts if method.context else self.student_prompts

    @property
    def gold_completions(self) -> list[list[int]] | None:
        """The gold completions of all rows; None if a row has none."""
        known = [completion for completion in self.gold if completion is not None]
        return known if len(known) == len(self.rows) else None

    def need_gold(self) -> list[list[int]]:
        """The gold completions of all rows.

        Raises:
            ContextError: a row has none. The message has the first such row.
        """
        if self.gold_completions is None:
            raise ContextError(
                f"completions are gold, but {self.name} {self.gold.index(None) + 1} has no output",
                got=f"{self.gold.count(None)} of {len(self.gold)} rows have no output",
                mend="add the outputs, or pass --completions teacher",
            )
        return self.gold_completions

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
        student.check_ids([ids or [] for ids in self.gold], where=f"the output of {self.name}")

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
        for side, prompts, window, mend in sides:
            for number, (prompt, gold) in enumerate(zip(prompts, self.gold, strict=True), 1):
                longest = max(limit, len(gold or []))
                where = f"{self.name} {number}"
                check_window(len(prompt), longest, window, where=where, side=side, mend=mend)

    def pairs(
        self, completions: Sequence[tuple[int, list[int]]], windows: Windows
    ) -> Sequence[AlignedPair]:
        """Makes checked pairs from (number of a row, completion).

        Raises:
            AlignmentError: a pair does not fit a model.
        """

        def pair_at(index: int) -> AlignedPair:
            row, ids = completions[index]
            return AlignedPair(row, self.teacher_prompts[row], self.student_prompts[row], ids)

        pairs = Computed(len(completions), pair_at)
        for pair in pairs:
            pair.check(teacher_window=windows.teacher, student_window=windows.student)
        return pairs


def _as_written(row: Row, form: PromptFormat, ids: list[int] | None) -> Row:
    """A row whose output is what the model would write: calls of tools have their own form."""
    answer = row.turn.answer if row.turn else None
    if ids is None or answer is None or not answer.tool_calls:
        return row
    return replace(row, output=form.decode(ids))
