"""Rows of a task: made of records, compared, and checked."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from instil.errors import DataFileError, DataFormatError, FieldError, OverlapError
from instil.system import files
from instil.tasks.conversation import Conversation, Turn, said, text_of
from instil.tasks.formats import read_fields
from instil.tasks.logprobs import logprobs_of
from instil.tasks.records import Fields, Records, is_missing, needed, shown
from instil.tasks.text_files import check_characters

R = TypeVar("R")
M = TypeVar("M")

_NAMED = 5  # of the other rows that are wrong
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff]"
)
"""Soft hyphens, characters of no width, marks of the direction, and variants of emoji."""
_MEANT = re.compile(
    "([\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209c\u2150-\u215f\u2189\u2460-\u2473]+)"
)
"""Superscripts, subscripts, fractions and numbers in circles. Plain digits mean something else."""


@dataclass(frozen=True)
class Row:
    """An input and, if it is known, its gold output.

    Attributes:
        input: The query. Of a conversation: the last message before the answer.
        output: The gold output.
        context: What only the teacher reads with this row, beside the context of all rows.
        turn: The conversation in which this is an answer; None if it is a single turn.
        logprobs: Log-probabilities that came with the output (`instil.tasks.logprobs`); None if none
            did.
    """

    input: str
    output: str | None = None
    context: str | None = None
    turn: Turn | None = None
    logprobs: str | None = field(default=None, repr=False)

    @property
    def conversation(self) -> int | None:
        """What tells the turns of one conversation from those of others; None for a single turn."""
        return id(self.turn.conversation) if self.turn else None


def read_rows(path: str | Path, *, need_output: bool) -> list[Row]:
    """Reads rows from JSON Lines (.jsonl), CSV with a header (.csv) or Parquet (.parquet).

    Args:
        path: The file. Its fields `input` and `output` are read; other fields are ignored.
        need_output: Whether every row must have an output.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: the file is binary, wrongly encoded or cut off, or a line is malformed.
        FieldError: a row has no `input` or no needed `output`, or the field is empty.
    """
    rows = make_rows(
        read_fields(Path(path)),
        lambda fields, where: row_of(fields, where, need_output=need_output),
    )
    if not rows:
        raise DataFileError(f"{path} contains no rows", mend="add at least one row")
    return rows


def make_rows(records: Iterable[tuple[str, R]], made: Callable[[R, str], M | None]) -> list[M]:
    """Makes rows of records.

    Args:
        records: The place and the content of each record.
        made: Makes a row of the content and the place; None to leave the record out.

    Raises:
        FieldError: a record is wrong. The message names some of the other wrong ones, too.
        DataFormatError: the same, or the file is malformed.
    """
    rows: list[M] = []
    wrong: list[tuple[str, FieldError | DataFormatError]] = []
    for where, record in records:
        try:
            row = made(record, where)
        except (FieldError, DataFormatError) as error:
            wrong.append((where, error))
            if len(wrong) > _NAMED:
                break
        else:
            if row is not None:
                rows.append(row)
    if wrong:
        # If all rows are wrong, the first one says enough.
        raise all_of(wrong if rows else wrong[:1]) from None
    return rows


def all_of(
    wrong: Sequence[tuple[str, FieldError | DataFormatError]],
) -> FieldError | DataFormatError:
    """The first of the errors of some records. Its message names the places of other ones."""
    first = wrong[0][1]
    others = [where.rpartition(", ")[2] for where, _ in wrong[1 : _NAMED + 1]]
    if others:
        first.what += f" (also wrong: {', '.join(others)})"
    return first


def as_rows(
    rows: Iterable[Row | str | Mapping[str, object]], *, name: str, need_output: bool
) -> list[Row]:
    """Converts `Row`s, mappings with `input` and `output`, or input texts into rows.

    Raises:
        FieldError: these are not rows, or a row has no `input` or no needed `output`, or the
            field is empty.
        DataFileError: there are no rows.
    """
    made = make_rows(
        as_records(rows, name=name),
        lambda fields, where: row_of(fields, where, need_output=need_output),
    )
    if not made:
        raise DataFileError(f"no rows are given for {name}", mend="add at least one row")
    return made


def as_records(rows: Iterable[Row | str | Mapping[str, object]], *, name: str) -> Records:
    """Yields `Row`s, mappings or input texts as records.

    Raises:
        FieldError: these are not rows.
    """
    if (
        isinstance(rows, str | bytes | Mapping)
        or not isinstance(rows, Iterable)
        or hasattr(rows, "columns")  # a data frame, which iterates over the names of its columns
    ):
        raise FieldError(
            f"{name}: a list of rows is expected",
            got=shown(rows) if isinstance(rows, str | Path) else type(rows).__name__,
            allowed="a list of texts, of mappings with `input` and `output`, or of `Row`s",
            mend="read a file with instil.read_rows, turn a data frame into a list with "
            "frame.to_dict('records')",
        )
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        yield where, _fields(row, where)


def check_overlap(
    evaluation: Sequence[Row], others: Mapping[str, Sequence[Row]], *, allow: bool
) -> None:
    """Checks that the student and the teacher have not seen the evaluation rows.

    Inputs are compared by their `key`, conversations as a whole.

    Args:
        evaluation: The held-out rows.
        others: Name -> rows that must not contain an evaluation row.
        allow: Skip the check.

    Raises:
        OverlapError: the message has the first such row and the number of such rows.
    """
    if allow:
        return
    judged = {group(row) for row in evaluation}
    for name, rows in others.items():
        seen: dict[str, int] = {}
        for number, row in enumerate(rows, start=1):
            if (of := group(row)) in judged:
                seen.setdefault(of, number)
        leaks = [number for number, row in enumerate(evaluation, start=1) if group(row) in seen]
        if leaks:
            leak = evaluation[leaks[0] - 1]
            raise OverlapError(
                f"{len(leaks)} of {len(evaluation)} evaluation rows are also among the {name}",
                got=f"evaluation row {leaks[0]}: {leak.input!r}; "
                f"row {seen[group(leak)]} of the {name}",
                mend="remove them from one of the two, or pass --allow-overlap to evaluate on them anyway",
            )


def digest(rows: Iterable[Row]) -> str:
    """A SHA-256 of the rows in their order."""
    return files.digest([_facts(row) for row in rows])


def _facts(row: Row) -> list[object]:
    facts: list[object] = [row.input, row.output]
    if row.context is not None or row.turn is not None:
        facts += [row.context, row.turn and row.turn.facts()]
    if row.logprobs is not None:
        facts.append(row.logprobs)
    return facts


def group(row: Row) -> str:
    """What the rows of one conversation have in common; of a single turn, its `key`."""
    return key(row) if row.turn is None else _whole(row.turn.conversation)


@lru_cache(maxsize=8)  # the rows of a conversation follow each other
def _whole(conversation: Conversation) -> str:
    return plain(said(conversation))


def grouped(rows: Sequence[Row]) -> list[int]:
    """For each row the number of its `group`, from 0, in the order of what these have in common."""
    known: dict[str, int] = {}
    first = [known.setdefault(group(row), len(known)) for row in rows]
    numbers = {known[text]: number for number, text in enumerate(sorted(known))}
    return [numbers[of_row] for of_row in first]


def answer_number(row: Row) -> int | None:
    """Which answer of its conversation a row is, from 1; None if it belongs to no conversation."""
    if row.turn is None:
        return None
    answers = row.turn.conversation.answers("all", open_end=True)
    return answers.index(row.turn.number) + 1 if row.turn.number in answers else None


def key(row: Row) -> str:
    """What two inputs that look the same have in common; texts with equal keys are one input.

    Case, extra white space and invisible characters are left out. Of a character with several
    Unicode forms, such as `é` in one piece or in two, all forms are the same.
    """
    said = row.turn.before if row.turn else ()
    return plain(text_of(said) if len(said) > 1 else row.input)


def plain(text: str) -> str:
    """What texts that look the same have in common; see `key`."""
    if not text.isascii():
        pieces = _MEANT.split(_INVISIBLE.sub("", text))  # every other one is what _MEANT found
        pieces[::2] = [unicodedata.normalize("NFKC", piece) for piece in pieces[::2]]
        text = "".join(pieces)
    # Folding the case may take a letter apart.
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split())


def _fields(row: object, where: str) -> Fields:
    if isinstance(row, Row):
        fields = {"input": row.input, "output": row.output, "context": row.context}
        return fields if row.logprobs is None else {**fields, "logprobs": row.logprobs}
    if isinstance(row, str):
        return {"input": row}
    if isinstance(row, Mapping):
        return row
    raise FieldError(
        f"{where}: this is not a row",
        got=shown(row),
        allowed="a text, a mapping with `input` and `output`, or a `Row`",
    )


def row_of(fields: Fields, where: str, *, need_output: bool, input: str = "input") -> Row:
    """Makes a row of a record.

    Args:
        fields: The record.
        where: Its place, for error messages.
        need_output: Whether it must have an output.
        input: Name of the field that is the row's input.

    Raises:
        FieldError: a field is missing, empty or no text.
        DataFormatError: a text contains half a character.
    """
    values: dict[str, str] = {}
    for name in (input, "output", "context"):
        optional = name == "context" or (name == "output" and not need_output)
        if optional and is_missing(fields.get(name)):
            continue
        value = needed(fields, name, where)
        if not isinstance(value, str):
            raise FieldError(
                f"{where}: the field {name!r} is not text",
                got=shown(value),
                allowed="a string",
                mend="write it as text; in JSON, put it in quotation marks",
            )
        if not _INVISIBLE.sub("", value).strip():
            if optional:  # an empty cell of a CSV
                continue
            raise FieldError(
                f"{where}: the field {name!r} is empty", mend="fill it or delete the row"
            )
        check_characters(value, f"{where}: the field {name!r}")
        values[name] = value
    logprobs = logprobs_of(fields.get("logprobs")) if "output" in values else None
    return Row(values[input], values.get("output"), values.get("context"), logprobs=logprobs)
