"""Checks that prompts hold what was given, and that gold turns are what is decoded and compared."""

from __future__ import annotations

import re
from collections.abc import Sequence

from instil.errors import ChatTemplateError, ConfigError, FieldError
from instil.prompts.context import NO_CONTEXT, Context
from instil.prompts.format import ChatPrompt, PlainPrompt, PromptFormat
from instil.prompts.turns import tools_of
from instil.system import forks
from instil.system.progress import Display
from instil.tasks import thinking
from instil.tasks.conversation import Conversation
from instil.tasks.rows import Row

_PROBE = Row("instil probe input", "instil probe output")
_TO_PLAIN = "pass --format plain"


class Checks:
    """Checks the prompts of a run. Errors are raised at once, warnings are collected.

    Args:
        form: Prompt format.
        written: Whether answers are written, and not chosen among labels.

    Raises:
        ConfigError: the tokenizer does not keep the text that ends an answer.
    """

    def __init__(self, form: PromptFormat, *, written: bool = True) -> None:
        self._form = form
        self._warnings: dict[str, None] = {}
        self._shapes: set[tuple[bool, int]] = set()
        self._spelt: list[str] = []
        self._last: tuple[Conversation | None, str | None] = (None, None)
        if written and form.stop and not form.ending.stops(form.completion_ids(_PROBE)):
            raise ConfigError(
                f"the model's tokenizer does not keep {form.stop[0]!r}, the text that ends an answer",
                mend="pass another --completion-pattern, such as ' {output} ###'",
            )
        if isinstance(form, PlainPrompt):
            self._patterns(form)
        if written and isinstance(form, ChatPrompt) and form.thinks:
            off = "--set 'prompt.chat_template_kwargs={enable_thinking: false}'"
            self._warn(
                "the chat template lets the model think before it answers. What it thinks is no "
                "part of its answer, but it counts towards --max-new-tokens"
                + (f". To turn it off: {off}" if form.template.reads("enable_thinking") else "")
            )

    @property
    def warnings(self) -> list[str]:
        """What the user should know, one text each."""
        spelt = self._spelt
        if not spelt:
            return list(self._warnings)
        rows = "1 row spells" if len(spelt) == 1 else f"{len(spelt)} rows spell"
        return [
            *self._warnings,
            f"{rows} a control token of the model, which is read as text: {spelt[0]}",
        ]

    def rows(
        self,
        name: str,
        rows: Sequence[Row],
        contexts: Context | Sequence[Context],
        gold: Sequence[list[int] | None] = (),
    ) -> None:
        """Checks a set of rows.

        Args:
            name: Name for a row of the set in messages.
            rows: The rows.
            contexts: Context of all rows, or of each row.
            gold: Gold completion of each row, or None. Empty if none is needed.

        Raises:
            ChatTemplateError: the template leaves out a part of the prompt.
            FieldError: a gold output contains a token that ends an answer, or no gold output can
                be written.
        """
        if rows:
            context = contexts if isinstance(contexts, Context) else contexts[0]
            self._context(context)
            self._content(name, rows[0], context)
            self._tools(rows)
        for number, row in enumerate(rows, 1):
            self._control_tokens(f"{name} {number}", row)
        self._gold(name, rows, gold)

    def tell(self, display: Display) -> None:
        """Shows the warnings."""
        for warning in self.warnings:
            display.warn(warning)

    def _warn(self, text: str) -> None:
        self._warnings[text] = None

    def _patterns(self, form: PlainPrompt) -> None:
        """Warns of patterns that are hardly what was meant."""
        if form.splits_words:
            self._warn(
                "prompt.pattern ends in white space, and the model's words begin with theirs; "
                "answers get worse. Move the white space to the start of prompt.completion"
            )
        patterns = {
            "pattern": form.pattern,
            "completion": form.before + form.stop[0],
            "separator": form.separator,
        }
        for name, pattern in patterns.items():
            if found := re.search(r"\\[nt](?![a-z])", pattern):  # `\neq` may be LaTeX
                self._warn(
                    f"prompt.{name} contains a backslash and the letter {found[0][1]}, which is no "
                    "white space. In YAML, write it in double quotes"
                )

    def _context(self, context: Context) -> None:
        """Renders known texts in place of those given: each must stand in the prompt, in order."""
        systems = [one for one in context.head if one.role == "system"]
        has_system = bool(context.preamble or systems)
        form, shape = self._form, (has_system, len(context.demonstrations))
        if not isinstance(form, ChatPrompt) or shape in self._shapes:
            return
        self._shapes.add(shape)
        if has_system and not form.takes_system:
            self._warn(
                "the chat template has no system turn, so what would be its text begins the user's "
                "first turn"
            )
        shots = [Row(f"{_PROBE.input} {n}.", f"{_PROBE.output} {n}.") for n in range(shape[1])]
        system = "instil probe system"
        text = form.text(_PROBE.input, Context(None, system if shape[0] else None, tuple(shots)))
        if shape[0] and system not in text:
            raise ChatTemplateError(
                "the chat template leaves out the system turn, so the teacher would not read the "
                "instruction or document",
                mend=f"{_TO_PLAIN}, or give demonstrations instead",
            )
        turns = [part for row in shots for part in (row.input, row.output or "")]
        place = 0
        for number, part in enumerate([*turns, _PROBE.input]):
            place = text.find(part, place)
            if place < 0:
                what = "the query" if number == len(turns) else f"demonstration {number // 2 + 1}"
                raise ChatTemplateError(f"the chat template leaves out {what}", mend=_TO_PLAIN)
            place += len(part)

    def _content(self, name: str, row: Row, context: Context) -> None:
        """Looks for the given texts in the prompt of a row."""
        form = self._form
        if not isinstance(form, ChatPrompt):
            return
        text = form.text(row, context)
        for turn in form.messages(row, context):
            given, role = turn.content, turn.role
            if given in text:
                continue
            what = {
                "system": "the context",
                "user": "an input",
                "assistant": "an output",
                "tool": "a tool's result",
            }[role]
            if role == "assistant" and thinking.spoken(given).strip() in text:
                if thinking.spoken(given) != given:
                    self._warn(
                        "the chat template leaves out what demonstrations think before they answer"
                    )
                elif given.rstrip() not in text:
                    self._warn(
                        "the chat template removes the white space before a demonstration's output"
                    )
            elif given.strip() not in text:
                self._warn(f"the chat template changes {what}: {given.strip()[:80]!r} ({name} 1)")

    def _tools(self, rows: Sequence[Row]) -> None:
        """Definitions of tools must change the prompt."""
        form = self._form
        row = next((row for row in rows if tools_of(row, NO_CONTEXT)), None)
        hidden = Context(hides_tools=True)
        if row is not None and form.text(row, NO_CONTEXT) == form.text(row, hidden):
            self._warn(
                "the chat template leaves out the definitions of tools, so no model reads them; "
                "describe the tools in the system prompt, or use a model whose template knows tools"
            )

    def _control_tokens(self, where: str, row: Row) -> None:
        last, token = self._last
        if row.turn is None or row.turn.conversation is not last:
            said = [row.input, row.output or ""]
            if row.turn is not None:
                said = [one.content for one in row.turn.conversation.messages]
            found = map(self._form.tokens.spells, said)
            token = next((one for one in found if one), None)
            self._last = None if row.turn is None else row.turn.conversation, token
        if token:
            self._spelt.append(f"{token!r} in {where}")

    def _gold(self, name: str, rows: Sequence[Row], gold: Sequence[list[int] | None]) -> None:
        known, wrong = 0, list[str]()
        for count, others in forks.shares(
            lambda numbers: self._written(name, rows, gold, numbers), min(len(rows), len(gold))
        ):
            known += count
            wrong += others
        if wrong and len(wrong) == known:
            raise FieldError(
                "no gold output is what the model would have to write for it, so no answer could "
                "be right",
                got=wrong[0],
                mend="pass another --format",
            )
        if wrong:
            self._warn(
                f"{len(wrong)} of {known} gold outputs cannot be written as they are, and their "
                f"answers count as wrong: {wrong[0]}"
            )

    def _written(
        self,
        name: str,
        rows: Sequence[Row],
        gold: Sequence[list[int] | None],
        numbers: range,
    ) -> tuple[int, list[str]]:
        """How many of some rows have gold outputs, and those that cannot be written as they are.

        Raises:
            FieldError: a gold output contains a token that ends an answer.
        """
        form, known, wrong = self._form, 0, list[str]()
        for number in numbers:
            ids, output = gold[number], rows[number].output
            if ids is None or output is None:
                continue
            where = f"{name} {number + 1}"
            if early := set(ids[:-1]) & set(form.end_ids):
                raise FieldError(
                    f"{where}: the output contains a token that ends an answer",
                    got=f"{form.tokenizer.convert_ids_to_tokens(early.pop())!r}",
                    mend="delete the row, or remove the token from its output",
                )
            known += 1
            asked, written = form.spoken(output).strip(), form.decode(ids).strip()
            if asked != written:
                wrong.append(f"{where}: {asked[:80]!r} becomes {written[:80]!r}")
        return known, wrong
