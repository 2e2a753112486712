"""What the teacher reads before the query: demonstrations, an instruction, a document, in any combination."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from instil.errors import ContextError
from instil.recipe.sections import ContextFiles
from instil.system.files import digest
from instil.tasks.rows import Row, as_rows, read_rows, read_text


@dataclass(frozen=True, init=False)
class FewShot:
    """Solved examples.

    Args:
        demonstrations: Rows with an input and an output.
        k: Take the first k of them; all by default.

    Raises:
        ContextError: k is not between 1 and the number of demonstrations.
        FieldError: a demonstration lacks its input or output.
    """

    demonstrations: tuple[Row, ...]

    def __init__(
        self, demonstrations: Iterable[Row | Mapping[str, object]], *, k: int | None = None
    ) -> None:
        rows = as_rows(demonstrations, name="demonstrations", need_output=True)
        if k is not None and not 1 <= k <= len(rows):
            raise ContextError(
                f"k = {k} demonstrations asked for, {len(rows)} there",
                allowed=f"1 to {len(rows)}",
                mend="add demonstrations or lower k",
            )
        object.__setattr__(self, "demonstrations", tuple(rows[:k]))


@dataclass(frozen=True)
class Instruction:
    """What to do, in words."""

    text: str


@dataclass(frozen=True)
class Document:
    """A text that the answers are to be drawn from."""

    text: str


ContextPart = FewShot | Instruction | Document


@dataclass(frozen=True)
class Context:
    """All that the teacher reads and the student does not. An empty one is the student's own view."""

    document: str | None = None
    instruction: str | None = None
    demonstrations: tuple[Row, ...] = ()

    @classmethod
    def of(cls, parts: ContextPart | Sequence[ContextPart]) -> Context:
        """Joins parts into one context.

        Raises:
            ContextError: no part, an empty part, or two parts of one kind.
        """
        parts = [parts] if isinstance(parts, ContextPart) else list(parts)
        made: dict[str, str | tuple[Row, ...]] = {}
        for part in parts:
            kind = {FewShot: "demonstrations", Instruction: "instruction", Document: "document"}[
                type(part)
            ]
            if kind in made:
                raise ContextError(
                    f"two parts of the kind {type(part).__name__}", allowed="one of each kind"
                )
            value = part.demonstrations if isinstance(part, FewShot) else part.text.strip()
            if not value:
                raise ContextError(
                    f"the {kind} part of the context is empty", mend="fill it or leave it out"
                )
            made[kind] = value
        if not made:
            raise ContextError(
                "no context to distil",
                allowed="demonstrations, an instruction, a document, or several of them",
                mend="pass --demos, --instruction or --document",
            )
        return cls(**made)  # type: ignore[arg-type]

    @classmethod
    def read(cls, files: ContextFiles) -> Context:
        """Reads the parts from files.

        Raises:
            ContextError: no file is named, or k does not fit the demonstrations.
            InstilError: a file is at fault.
        """
        parts: list[ContextPart] = []
        if files.document:
            parts.append(Document(read_text(files.document)))
        if files.instruction:
            parts.append(Instruction(read_text(files.instruction)))
        if files.demos:
            parts.append(FewShot(read_rows(files.demos, need_output=True), k=files.k))
        elif files.k is not None:
            raise ContextError(
                f"k = {files.k} without demonstrations", mend="pass --demos, or drop --k"
            )
        return cls.of(parts)

    @property
    def preamble(self) -> str:
        """Document and instruction as one text; empty if there is neither."""
        return "\n\n".join(part for part in (self.document, self.instruction) if part)

    def digest(self) -> str:
        """A SHA-256 over the whole context."""
        rows = [[row.input, row.output] for row in self.demonstrations]
        return digest([self.document, self.instruction, rows])


NO_CONTEXT = Context()
