"""The user's own rows, and the context of each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from instil.errors import ContextError, DataFileError
from instil.methods import METHODS
from instil.prompts.context import Context, no_context
from instil.recipe.canonical import reads_context
from instil.recipe.recipe import Recipe
from instil.results.logs import Dropped, LogFacts
from instil.tasks.conversation import Conversation, said
from instil.tasks.duplicates import copies
from instil.tasks.files import ROWS, Files
from instil.tasks.logs import (
    Pile,
    Reading,
    left_out,
    most_frequent,
    read_pile,
    rows_of,
    with_heads,
)
from instil.tasks.messages import BadRowError
from instil.tasks.rows import Row, as_records


@dataclass(frozen=True)
class Given:
    """The rows and the context of the task `files`.

    Attributes:
        context: Context that the teacher reads with all rows.
        inputs: Rows to learn from.
        held_out: Evaluation rows by set name. None: some of the inputs are held out.
        facts: What was found in the inputs; None if there are no conversations.
        dropped: Rows that were left out.
        drops: Whether further rows that cannot be used are left out, too.
    """

    context: Context
    inputs: list[Row]
    held_out: Mapping[str, list[Row]] | None
    facts: LogFacts | None = None
    dropped: list[Dropped] = field(default_factory=list)
    drops: bool = False

    @classmethod
    def read(cls, recipe: Recipe, task: Files) -> Given:
        """Reads the files that a task names.

        Raises:
            InstilError: a file is missing or wrong.
        """
        inputs, held_out = task.piles(
            need_output=needs_gold(recipe), logprobs=reads_logprobs(recipe)
        )
        context = Context.read(task) if reads_context(recipe) else Context()
        return cls.of(recipe, task, context, inputs, held_out or None)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        task: Files,
        context: Context,
        inputs: Pile,
        held_out: Mapping[str, Pile] | None,
    ) -> Given:
        """Finds the context of each row.

        Args:
            recipe: All settings.
            task: How conversations are read.
            context: The context that is given.
            inputs: Rows to learn from.
            held_out: Evaluation rows by set name.

        Raises:
            ContextError: there is no context.
        """
        piles: dict[str | None, Pile] = {None: inputs}
        piles.update(held_out or {})
        headed = Headed.of(piles, task, context)
        reading = task.reading(gold=needs_gold(recipe))
        near = _near_copies(headed.items)
        rows = {name: rows_of(items, reading) for name, items in headed.items.items()}
        learnt = rows.pop(None)
        dropped = [one for pile in piles.values() for one in pile.dropped]
        dropped += [*headed.dropped, *near]
        own = any(row.context for row in learnt)
        if reads_context(recipe) and headed.context == Context() and not own:
            systems = any(one.system for one in inputs.conversations)
            raise no_context(logs=systems and not task.context_from_logs)
        return cls(
            headed.context,
            learnt,
            {str(name): of for name, of in rows.items()} if held_out else None,
            headed.facts(learnt) if inputs.conversations else None,
            dropped,
            inputs.drops,
        )

    def found(self, dropped: Sequence[Dropped]) -> LogFacts | None:
        """What was found in conversations; None if there are none.

        Args:
            dropped: All rows that were left out, also after they were read.
        """
        counts = Counter(one.reason for one in dropped)
        return self.facts and self.facts.model_copy(update={"dropped": dict(counts)})


@dataclass(frozen=True)
class Headed:
    """Conversations whose first messages are known to be the context.

    Attributes:
        items: Rows and conversations by set name; None: those to learn from.
        context: Context of all rows.
        others: Number of conversations with a context of their own.
        dropped: Conversations without one.
        from_logs: Whether the context comes from the conversations.
    """

    items: dict[str | None, list[Row | Conversation]]
    context: Context
    others: int
    dropped: list[Dropped]
    from_logs: bool

    @classmethod
    def of(cls, piles: Mapping[str | None, Pile], task: Files, context: Context) -> Headed:
        """Looks for the context in conversations.

        Raises:
            ContextError: it must come from conversations, and there are none with a context.
        """
        known = [one for pile in piles.values() for one in pile.conversations]
        heads = {id(one): one.head for one in known}
        dropped: list[Dropped] = []
        others, known_head = 0, bool(context.head)
        if context.head:  # it is known from a finished run
            size = len(context.head)
            for one in known:
                if one.messages[:size] == context.head:
                    heads[id(one)] = size
                elif task.context_from_logs:
                    heads[id(one)] = one.system
        elif task.context_from_logs:
            found = with_heads(known)
            heads = {id(one): new.head for one, new in zip(known, found, strict=True)}
            common, count = most_frequent(one.messages[: one.head] for one in found)
            if not common:
                raise ContextError(
                    "the context must come from the conversations, but none begins with a system "
                    "message, and they share no first turns",
                    mend="give the context with --instruction or --demos, and leave out "
                    "--context-from-logs",
                )
            context = replace(context, head=common)
            others = sum(one.head > 0 for one in found) - count
        elif context.preamble:  # the same text as the conversations' own
            for one in known:
                system = "\n\n".join(m.content.strip() for m in one.messages[: one.system])
                if system == context.preamble.strip():
                    heads[id(one)] = one.system

        def headed(item: Row | Conversation) -> Row | Conversation | None:
            if isinstance(item, Row):
                return item
            if task.context_from_logs and not heads[id(item)] and not known_head:
                error = BadRowError(
                    "no context",
                    f"{item.where}: the conversation does not begin with a system message",
                    mend="delete the row",
                )
                dropped.append(left_out(item.where, error))
                return None
            return replace(item, head=heads[id(item)])

        items = {
            name: [made for made in map(headed, pile.items) if made is not None]
            for name, pile in piles.items()
        }
        return cls(items, context, others, dropped, task.context_from_logs)

    def facts(self, rows: Sequence[Row]) -> LogFacts:
        """What was found in the rows to learn from."""
        whole = [item for item in self.items[None] if isinstance(item, Conversation)]
        return LogFacts(
            conversations=len(whole),
            turns=sum(row.turn is not None for row in rows),
            with_system=sum(one.system > 0 for one in whole),
            with_tools=sum(one.tools is not None for one in whole),
            with_context=sum(row.context is not None for row in rows),
            head_messages=len(self.context.head) if self.from_logs else None,
            other_heads=self.others,
        )


def own_prompt(task: Files) -> Context:
    """What the student reads before a query."""
    return Context(instruction=task.student_system, hides_tools=task.bake_tools)


def reads_logprobs(recipe: Recipe) -> bool:
    """Whether log-probabilities that came with answers are the teacher's predictions."""
    return recipe.teacher.targets == "logged"


def needs_gold(recipe: Recipe) -> bool:
    """Whether the recipe needs the gold outputs of the training rows."""
    learns = METHODS[recipe.method].learns
    return learns == "labels" or (learns == "targets" and recipe.teacher.completions == "gold")


@dataclass(frozen=True)
class RowContexts:
    """The context of all rows, with what belongs to a single row.

    Attributes:
        context: Context of all rows.
        from_logs: Whether a conversation's first messages are its context.
    """

    context: Context
    from_logs: bool
    _made: dict[tuple[object, ...], Context] = field(default_factory=dict)

    def contexts(self, number: int, queries: Sequence[Row], name: str) -> list[Context]:
        """See `Contexts.contexts`. Rows with equal contexts have the same object."""
        return [self._of(row) for row in queries]

    def _of(self, row: Row) -> Context:
        own = row.turn.head if row.turn and self.from_logs else ()
        head = own or self.context.head
        if head == self.context.head and row.context is None:
            return self.context
        made = replace(self.context, head=head, own=row.context)
        return self._made.setdefault((head, row.context), made)


def named_sets(
    given: Iterable[Row | Mapping[str, Any]]
    | Mapping[str, Iterable[Row | Mapping[str, Any]]]
    | None,
    reading: Reading,
) -> dict[str, Pile] | None:
    """Returns the evaluation rows by set name; None if there are none.

    Raises:
        DataFileError: there are no rows.
        FieldError: a row lacks a field.
    """
    if given is None:
        return None
    named = given if isinstance(given, Mapping) else {ROWS: given}
    if not named:
        raise DataFileError("eval: no sets", mend="give at least one set, or leave out eval")
    titles = {name: "eval" if name == ROWS else f"eval {name}" for name in named}
    return {
        name: read_pile(as_records(rows, name=titles[name]), titles[name], reading)
        for name, rows in named.items()
    }


def _near_copies(items: dict[str | None, list[Row | Conversation]]) -> list[Dropped]:
    """Takes conversations out of those to learn from that are near-copies of evaluation rows.

    Copies stay: they are refused, unless the user allows them.

    Args:
        items: Rows and conversations by set name; None: those to learn from. It is changed.

    Returns:
        Those that were taken out.
    """
    learnt = [one for one in items[None] if isinstance(one, Conversation)]
    judged = [
        one
        for name, of_set in items.items()
        if name is not None
        for one in of_set
        if isinstance(one, Conversation)
    ]
    if not (learnt and judged):
        return []
    found = list(copies([*judged, *learnt], said))[len(judged) :]
    near = {
        id(one): judged[copy[0]]
        for one, copy in zip(learnt, found, strict=True)
        if copy is not None and not copy[1] and copy[0] < len(judged)
    }
    items[None] = [one for one in items[None] if id(one) not in near]
    return [
        Dropped(
            where=one.where,
            reason="near duplicate",
            what=f"a near-copy of {near[id(one)].where}, which is an evaluation row",
        )
        for one in learnt
        if id(one) in near
    ]
