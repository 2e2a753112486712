"""Reads a pile of rows as they are: single turns and conversations, some of which cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from instil.errors import DataFileError, DataFormatError, FieldError, did_you_mean
from instil.results.logs import Dropped
from instil.tasks.conversation import Conversation, Message, Turn, Turns, said
from instil.tasks.duplicates import copies
from instil.tasks.messages import BadRowError, conversation_of
from instil.tasks.records import Fields, Records, with_fields
from instil.tasks.rows import Row, all_of, row_of
from instil.tasks.thinking import split_off

Thinking = Literal["learn", "drop", "forbid"]
OnBadRow = Literal["error", "drop"]

SMALL = 1000
"""Up to this number of rows, one that cannot be used is an error, unless the user says otherwise."""
ALIKE = 0.9
"""Share of all conversations that begin with the same turns, from which these are examples."""
FEW = 10
"""Of fewer conversations, all must begin with the same turns."""


@dataclass(frozen=True)
class Reading:
    """How rows are made of records.

    Attributes:
        fields: Name of a field -> its name in the file.
        turns: Which answers of a conversation are learnt.
        thinking: What is done with what the assistant thought before a logged answer.
        on_bad_row: What is done with a row that cannot be used. None: it is an error if there are
            few rows; of many rows, it is left out.
        need_output: Whether every row of a single turn must have an output.
        open_end: Whether a conversation may end with the user, whose answer is not known.
        logprobs: Whether log-probabilities are kept that came with answers.
    """

    fields: Mapping[str, str] | None = None
    turns: Turns = "all"
    thinking: Thinking = "learn"
    on_bad_row: OnBadRow | None = None
    need_output: bool = False
    open_end: bool = True
    logprobs: bool = False


@dataclass(frozen=True)
class Pile:
    """The rows of a place.

    Attributes:
        items: The rows and conversations that can be used, in their order.
        dropped: Those that were left out.
        drops: Whether further rows that cannot be used are left out, too.
    """

    items: list[Row | Conversation]
    dropped: list[Dropped]
    drops: bool

    @property
    def conversations(self) -> list[Conversation]:
        """The conversations among the rows."""
        return [item for item in self.items if isinstance(item, Conversation)]


def read_pile(records: Records, name: str, reading: Reading, *, copies: bool = False) -> Pile:
    """Makes rows and conversations of records.

    Of conversations that are copies or near-copies of each other, one is used.

    Args:
        records: The records.
        name: Where they come from, for error messages.
        reading: How they are read.
        copies: Use copies, too.

    Raises:
        DataFileError: there are no rows that can be used.
        FieldError: a row cannot be used. The message names some of the other ones, too.
        DataFormatError: a file is malformed.
    """
    items: list[Row | Conversation] = []
    places: list[str] = []
    wrong: list[tuple[str, FieldError | DataFormatError]] = []
    for where, fields in records:
        try:
            items.append(_item(_renamed(fields, reading, where), where, reading))
            places.append(where)
        except (FieldError, DataFormatError) as error:
            wrong.append((where, error))
    count = len(items) + len(wrong)
    drops = reading.on_bad_row == "drop" or (reading.on_bad_row is None and count > SMALL)
    if wrong and not drops:
        raise all_of(wrong if items else wrong[:1])
    dropped = [left_out(where, error) for where, error in wrong]
    kept = items if copies else _without_copies(items, places, dropped)
    if not kept:
        raise DataFileError(
            f"{name} contains no rows"
            + (f" that can be used: all {count} were left out" if dropped else ""),
            got=_counted(dropped),
            mend="pass --on-bad-row error to see what is wrong"
            if dropped
            else "add at least one row",
        )
    return Pile(kept, dropped, drops)


def rows_of(items: Iterable[Row | Conversation], reading: Reading) -> list[Row]:
    """The rows: of a conversation, one for each of its answers that is learnt."""
    rows: list[Row] = []
    for item in items:
        if isinstance(item, Row):
            rows.append(item)
            continue
        rows += [
            _turn(item, number) for number in item.answers(reading.turns, open_end=reading.open_end)
        ]
    return rows


def with_heads(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Finds what conversations begin with: the system's messages, and example turns.

    The first turns are examples if nearly all conversations begin with the same ones.

    Returns:
        The conversations, each with the number of messages that are its head.
    """
    rests = [one.messages[one.system :] for one in conversations]
    needed = ALIKE * len(rests) if len(rests) >= FEW else max(3, len(rests))
    shown: tuple[Message, ...] = ()
    while True:
        start = len(shown)
        pairs = Counter(
            rest[start : start + 2]
            for rest in rests
            if rest[:start] == shown
            and len(rest) > start + 2
            and [one.role for one in rest[start : start + 2]] == ["user", "assistant"]
        )
        pair, count = pairs.most_common(1)[0] if pairs else ((), 0)
        if count < needed:
            break
        shown += pair
    made = []
    for one, rest in zip(conversations, rests, strict=True):
        examples = len(shown) if shown and rest[: len(shown)] == shown else 0
        made.append(replace(one, head=one.system + examples))
    return made


def most_frequent(heads: Iterable[tuple[Message, ...]]) -> tuple[tuple[Message, ...], int]:
    """The most frequent head that is not empty, and the number of its conversations."""
    counted = Counter(head for head in heads if head)
    return counted.most_common(1)[0] if counted else ((), 0)


def left_out(where: str, error: FieldError | DataFormatError) -> Dropped:
    """A row that was left out because of an error."""
    reason = error.reason if isinstance(error, BadRowError) else "malformed"
    return Dropped(where=where, reason=reason, what=str(error))


def _turn(conversation: Conversation, number: int) -> Row:
    turn = Turn(conversation, number)
    answer = turn.answer
    output = None
    if answer is not None:
        output = answer.content
        if not output.strip():
            output = "\n".join(f"{call.name} {call.arguments}" for call in answer.tool_calls)
    logprobs = None if answer is None else answer.logprobs
    return Row(turn.before[-1].content, output, conversation.context, turn, logprobs)


def _item(fields: Fields, where: str, reading: Reading) -> Row | Conversation:
    made = conversation_of(fields, where)
    if made is None:
        row = row_of(fields, where, need_output=reading.need_output)
        return row if reading.logprobs or row.logprobs is None else replace(row, logprobs=None)
    made = replace(made, messages=tuple(_kept(one, where, reading) for one in made.messages))
    if not made.answers("all", open_end=reading.open_end):
        last = made.messages[-1].role
        raise BadRowError(
            "ends with the user" if last in ("user", "tool") else "no assistant turn",
            f"{where}: the conversation has no answer to learn",
            got=f"its last message is the {last}'s",
            mend="delete the row, or let the teacher write the answers (--completions teacher)"
            if last in ("user", "tool")
            else "delete the row",
        )
    return made


def _kept(message: Message, where: str, reading: Reading) -> Message:
    """A message with the thoughts and the log-probabilities that are learnt."""
    if message.logprobs is not None and not reading.logprobs:
        message = replace(message, logprobs=None)
    return _thought(message, where, reading.thinking)


def _thought(message: Message, where: str, thinking: Thinking) -> Message:
    """A message whose thinking is apart from its content, learnt, left out or refused."""
    if message.role != "assistant":
        return message
    thoughts, content = split_off(message.content)
    known = message.thinking if message.thinking is not None else thoughts
    if known is None:
        return message
    if thinking == "forbid":
        raise BadRowError(
            "thinks",
            f"{where}: the assistant thinks before it answers",
            got=repr(known[:80]),
            mend="delete the row, or pass --thinking learn or drop",
        )
    return replace(
        message, content=content if thoughts is not None else message.content,
        thinking=known if thinking == "learn" else None,
        logprobs=message.logprobs if thinking == "learn" else None,
    )  # fmt: skip


def _renamed(fields: Fields, reading: Reading, where: str) -> Fields:
    if not reading.fields:
        return fields
    for ours, theirs in reading.fields.items():
        if theirs not in fields:
            raise FieldError(
                f"{where}: there is no field {theirs!r}, which --field {ours}={theirs} names",
                got=f"fields {', '.join(map(repr, fields)) or 'none'}",
                mend=did_you_mean(theirs, fields),
            )
    return with_fields(fields, {our: fields[theirs] for our, theirs in reading.fields.items()})


def _without_copies(
    items: Sequence[Row | Conversation], places: Sequence[str], dropped: list[Dropped]
) -> list[Row | Conversation]:
    """The rows, and of conversations that are copies of each other the first one."""
    numbers = [n for n, item in enumerate(items) if isinstance(item, Conversation)]
    if len(numbers) < 2:
        return [*items]
    # What all conversations begin with would make each of them much like the others.
    headed = with_heads([item for item in items if isinstance(item, Conversation)])
    again: set[int] = set()
    for number, found in zip(numbers, copies(headed, said), strict=True):
        if found is not None:
            first, exact = found
            kind = "duplicate" if exact else "near duplicate"
            again.add(number)
            dropped.append(
                Dropped(
                    where=places[number],
                    reason=kind,
                    what=f"a {'copy' if exact else 'near-copy'} of {places[numbers[first]]}",
                )
            )
    return [item for n, item in enumerate(items) if n not in again]


def _counted(dropped: Iterable[Dropped]) -> str:
    counts = Counter(one.reason for one in dropped)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
