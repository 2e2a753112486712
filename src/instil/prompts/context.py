"""The context: demonstrations, an instruction or a document before the query."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instil.errors import ContextError, DataFormatError
from instil.system.files import digest
from instil.tasks.conversation import Message
from instil.tasks.files import Files
from instil.tasks.messages import conversation_of
from instil.tasks.rows import Row, as_rows, read_rows
from instil.tasks.text_files import check_characters, read_text

_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


@dataclass(frozen=True, init=False)
class FewShot:
    """Solved examples.

    Args:
        demonstrations: Rows with an input and an output.
        k: Use only the first k; None for all.

    Raises:
        ContextError: k is not between 1 and the number of demonstrations.
        FieldError: a demonstration has no input or no output.
    """

    demonstrations: tuple[Row, ...]

    def __init__(
        self, demonstrations: Iterable[Row | Mapping[str, object]], *, k: int | None = None
    ) -> None:
        rows = as_rows(demonstrations, name="demonstrations", need_output=True)
        if k is not None and not 1 <= k <= len(rows):
            raise ContextError(
                f"k = {k}, but the number of demonstrations is {len(rows)}",
                allowed=f"1 to {len(rows)}",
                mend="add demonstrations or lower k",
            )
        object.__setattr__(self, "demonstrations", tuple(rows[:k]))


@dataclass(frozen=True)
class Instruction:
    """A text that says what to do."""

    text: str


@dataclass(frozen=True)
class Document:
    """A text that the answers should come from."""

    text: str


ContextPart = FewShot | Instruction | Document


@dataclass(frozen=True)
class Context:
    """All that the teacher reads and the student does not; the student's context is empty.

    Attributes:
        document: A text that the answers should come from.
        instruction: A text that says what to do.
        demonstrations: Solved examples.
        head: Messages that conversations begin with: the system's, and example turns.
        own: What belongs to a single row, such as a document that was found for it.
        hides_tools: Whether definitions of tools are left out. The teacher always reads them.
    """

    document: str | None = None
    instruction: str | None = None
    demonstrations: tuple[Row, ...] = ()
    head: tuple[Message, ...] = ()
    own: str | None = None
    hides_tools: bool = False

    @classmethod
    def of(cls, parts: ContextPart | Sequence[ContextPart]) -> Context:
        """Combines parts into one context.

        Raises:
            ContextError: there is no part, a part is empty, or two parts are of the same kind.
            DataFormatError: a text contains half a character.
        """
        parts = [parts] if isinstance(parts, ContextPart) else list(parts)
        made: dict[str, str | tuple[Row, ...]] = {}
        for part in parts:
            kind = {FewShot: "demonstrations", Instruction: "instruction", Document: "document"}[
                type(part)
            ]
            if kind in made:
                raise ContextError(
                    f"the context has two parts of the kind {type(part).__name__}",
                    allowed="one part of each kind",
                )
            value = part.demonstrations if isinstance(part, FewShot) else _text(part)
            if not value:
                raise ContextError(
                    f"the {kind} part of the context is empty", mend="fill it or remove it"
                )
            if isinstance(value, str):
                check_characters(value, f"the {kind} part of the context")
            made[kind] = value
        if not made:
            raise no_context()
        return cls(**made)  # type: ignore[arg-type]

    @classmethod
    def read(cls, task: Files) -> Context:
        """Reads the parts from the task's files; the context is empty if the task names none.

        Raises:
            ContextError: k does not fit the number of demonstrations.
            InstilError: a file cannot be used.
        """
        parts: list[ContextPart] = []
        if task.document:
            parts.append(Document(read_text(task.place(task.document))))
        if task.instruction:
            parts.append(Instruction(read_text(task.place(task.instruction))))
        if task.demos:
            parts.append(FewShot(read_rows(task.place(task.demos), need_output=True), k=task.k))
        elif task.k is not None:
            raise ContextError(
                f"k = {task.k}, but there are no demonstrations",
                mend="pass --demos, or remove --k",
            )
        return cls.of(parts) if parts else cls()

    @property
    def preamble(self) -> str:
        """Document, instruction and the row's own text as one text; empty if there are none."""
        parts = (self.document, self.instruction, self.own)
        return "\n\n".join(part for part in parts if part)

    def parts(self) -> dict[str, object]:
        """All of it as values for a file; see `restored`."""
        return {
            "document": self.document,
            "instruction": self.instruction,
            "demonstrations": [[row.input, row.output] for row in self.demonstrations],
            "head": [message.sent() for message in self.head],
        }

    @classmethod
    def restored(cls, parts: Mapping[str, Any]) -> Context:
        """Makes the context of a file again; see `parts`.

        Raises:
            DataFormatError: these are no parts of a context.
        """
        try:
            head = parts["head"]
            said = conversation_of({"messages": head}, "context", whole=False) if head else None
            return cls(
                parts["document"],
                parts["instruction"],
                tuple(Row(*pair) for pair in parts["demonstrations"]),
                said.messages if said else (),
            )
        except (KeyError, TypeError) as error:
            raise DataFormatError("the context of the run is damaged", got=str(error)) from error

    def digest(self) -> str:
        """A SHA-256 of the context."""
        rows = [[row.input, row.output] for row in self.demonstrations]
        head = [[message.facts() for message in self.head]] if self.head else []
        return digest([self.document, self.instruction, rows, *head])


NO_CONTEXT = Context()


def no_context(*, logs: bool = False) -> ContextError:
    """The error where there is nothing to distil.

    Args:
        logs: Whether conversations begin with a system message, which may be the context.
    """
    return ContextError(
        "there is no context to distil",
        allowed="demonstrations, an instruction, a document, or a combination of these",
        mend="pass --context-from-logs, since the conversations begin with a system message"
        if logs
        else "pass --demos, --instruction or --document",
    )


def as_given(text: str) -> str:
    """A text without the blank lines before it and the white space after it; indentation stays."""
    return _BLANK_LINES.sub("", text).rstrip()


def without_space(text: str) -> str:
    """The text without a single space before it, which is no indentation."""
    return text[1:] if text[:1] == " " and not text[1:2].isspace() else text


def _text(part: Instruction | Document) -> str:
    return without_space(as_given(part.text))
