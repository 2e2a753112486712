"""Renders rows in shares, on all cores if there are many rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from instil.errors import AlignmentError, ChatTemplateError, FieldError
from instil.prompts.context import Context
from instil.prompts.format import PromptFormat
from instil.prompts.windows import Sieve
from instil.results.logs import Dropped
from instil.system import forks
from instil.system.sequences import Kept, Lists, TokenLists
from instil.tasks.rows import Row


@dataclass(frozen=True)
class Share:
    """Rendered rows.

    Attributes:
        kept: Memory of the token ids.
        teacher: Token ids of the prompts with the context.
        student: Token ids of the prompts without it.
        gold: Gold completions.
        numbers: Which of the rows they are; the others were left out.
        written: Number of a row -> its output as the model would write it, if that is different.
        dropped: What was left out.
        whole: Whether texts were tokenised as a whole.
    """

    kept: Kept
    teacher: TokenLists
    student: TokenLists
    gold: Lists
    numbers: list[int] = field(default_factory=list)
    written: dict[int, str] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    whole: bool = False

    @classmethod
    def empty(cls) -> Share:
        """No rows."""
        kept = Kept()
        return cls(kept, TokenLists(kept), TokenLists(kept), Lists(kept))

    def extend(self, other: Share) -> None:
        """Adds other rows after these ones."""
        start = self.kept.extend(other.kept)
        self.teacher.extend(other.teacher, start)
        self.student.extend(other.student, start)
        self.gold.extend(other.gold, start)
        self.numbers.extend(other.numbers)
        self.written.update(other.written)
        self.dropped.extend(other.dropped)


@dataclass(frozen=True)
class Renderer:
    """Renders and tokenises rows.

    Attributes:
        name: Name for a row of the set in error messages.
        form: Prompt format.
        rows: The rows.
        contexts: The teacher's context for each row.
        student: Context that the student reads too.
        gold: Whether gold completions are needed.
        sieve: Leaves out rows that cannot be read; None: they are errors.
    """

    name: str
    form: PromptFormat
    rows: Sequence[Row]
    contexts: Sequence[Context]
    student: Context
    gold: bool
    sieve: Sieve | None

    def whole(self) -> Share:
        """All rows.

        Raises:
            FieldError: an output cannot be a completion in this format. The message has the row.
            ChatTemplateError: the template does not accept the turns. The message has the row.
        """
        while True:
            pieces = self.form.tokens.pieces
            before, made = pieces.used, Share.empty()
            for share in forks.shares(self._share, len(self.rows)):
                made.extend(share)
                pieces.used &= not share.whole
            if pieces.used == before:
                return made
            # The ids of a text were not those of its pieces, so all of them are made anew.

    def _share(self, numbers: range) -> Share:
        made, form = Share.empty(), self.form
        sieve = self.sieve and replace(self.sieve, dropped=made.dropped)
        for number in numbers:
            row = self.rows[number]
            reads = {"teacher": self.contexts[number], "student": self.student}
            name = f"{self.name} {number + 1}"
            try:
                ids = form.completion_ids(row) if self.gold and row.output else None
                prompts = {side: form.prompt_ids(row, read) for side, read in reads.items()}
                if sieve is not None:
                    sieve.check(prompts, len(ids or []))
            except (FieldError, ChatTemplateError, AlignmentError) as error:
                if sieve is None:
                    error.what = f"{name}: {error.what}"
                    raise
                sieve.drop(row, name, error)
                continue
            for side, lists in (("teacher", made.teacher), ("student", made.student)):
                # The caller holds the contexts and rows, so no two of them have the same id.
                lists.add(prompts[side], key=id(reads[side]), follows=row.conversation)
            made.gold.add(ids)
            made.numbers.append(number)
            answer = row.turn.answer if row.turn else None
            if ids is not None and answer is not None and answer.tool_calls:
                made.written[number] = form.decode(ids)
        return replace(made, whole=not form.tokens.pieces.used)
