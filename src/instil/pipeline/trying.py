"""Three answers side by side: the base without the context, with it, and the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instil.errors import DataFileError
from instil.methods import METHODS, MethodName
from instil.models.generate import stream
from instil.pipeline.student import Student
from instil.prompts.format import ChatPrompt
from instil.results.schema import CONTEXT
from instil.tasks.conversation import Conversation, Message, Turn, role_of
from instil.tasks.rows import Row

ASKED: tuple[MethodName, ...] = ("zero_shot", "in_context")


@dataclass
class Trial:
    """A conversation with three methods; each has its own answers in its history.

    Attributes:
        student: The student of the run.
        context: The prompt with the context, with `{input}` in place of the query; empty if the run
            has no context of all rows.
        said: Method -> the messages so far.
    """

    student: Student
    context: str
    said: dict[MethodName, list[Message]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Trial:
        """Loads a finished run.

        Raises:
            DataFileError: there is no such run, or its answers are labels.
        """
        student = Student.load(folder)
        if student.results.labels:
            raise DataFileError(
                f"{folder}: the answers of this run are labels, and no conversation",
                mend="use Student.answer from Python",
            )
        path = folder / CONTEXT
        return cls(student, path.read_text(encoding="utf-8") if path.exists() else "")

    @property
    def methods(self) -> list[MethodName]:
        """The methods that answer."""
        first = [name for name in ASKED if name != "in_context" or self.context]
        return [*first, self.student.results.method]

    @property
    def remembers(self) -> bool:
        """Whether earlier turns stand before a query: not in the plain format."""
        return isinstance(self.student.form, ChatPrompt)

    def begin(self) -> None:
        """Forgets what was said."""
        self.said.clear()

    def ask(self, query: str, tell: Callable[[MethodName, str], None]) -> None:
        """Lets all methods answer, one after another.

        Args:
            query: What the user says.
            tell: Called with a method and its answer so far.
        """
        for name in self.methods:
            history = self.said.setdefault(name, []) if self.remembers else []
            history.append(Message("user", query))
            answer = ""
            for answer in self._answer(name, history, query):
                tell(name, answer)
            history.append(Message("assistant", answer or " "))

    def _answer(self, name: MethodName, history: list[Message], query: str) -> Iterator[str]:
        student = self.student
        form, model = student.form, student.model
        limit = student.results.prompt.max_new_tokens or 256
        network: Any = model.network
        off = METHODS[name].learns is None
        with network.disable_adapter() if off else nullcontext():
            for ids in stream(model, self._prompt(name, history, query), form.ending, limit):
                yield form.decode(ids)

    def _prompt(self, name: MethodName, history: list[Message], query: str) -> list[int]:
        form = self.student.form
        facts = self.student.results.context
        if not isinstance(form, ChatPrompt):
            if name == "in_context":
                start, _, end = self.context.rpartition("{input}")
                return form.tokens.ids(start + form.tokens.marked(query) + end, special=True)
            return form.prompt_ids(query, self.student.alone)
        before: list[Message] = []
        if name == "in_context" and facts is not None:
            before = [
                Message(role_of(one.role) or "user", one.content) for one in facts.messages[:-1]
            ]
        elif name != "zero_shot" and self.student.alone.preamble:
            before = [Message("system", self.student.alone.preamble)]
        said = Conversation((*before, *history))
        return form.prompt_ids(Row(query, turn=Turn(said, len(said.messages))))
