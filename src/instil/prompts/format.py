"""Renders prompts and completions as token ids, in the plain or the chat format.

A prompt is rendered as one text, and has the token ids of one text, as a user who sends it would
see. A completion is tokenised once, and the same ids are appended to the teacher's and the
student's prompt. Text that comes from data never becomes a control token.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from instil.errors import ChatTemplateError, ConfigError, FieldError
from instil.models.generate import Ending
from instil.prompts.context import NO_CONTEXT, Context, as_given, without_space
from instil.prompts.template import ChatTemplate
from instil.prompts.tokens import Tokens, unmarked
from instil.prompts.turns import folded, marked, sent, tools_of, turns_of, with_thoughts
from instil.recipe import sections
from instil.system.sequences import TokenLists
from instil.tasks import thinking
from instil.tasks.conversation import Message
from instil.tasks.rows import Row

QUESTION, ANSWER = "instil probe question", "instil probe answer"
_SENT = 1024  # messages whose form for templates is kept: most prompts repeat those before them


class PromptFormat(ABC):
    """Turns queries and outputs into token ids.

    Attributes:
        name: `plain` or `chat`.
        stop: Strings that end an answer.
        end_ids: Token ids that end an answer.
        tokens: Tokenises prompts and completions.
        date: Date that prompts show as today's; None if they show none.
        thinks: What ends the thinking of a model that may think before it answers; None if it does
            not think.
    """

    name: str
    stop: list[str]
    end_ids: list[int]
    tokens: Tokens
    date: date | None = None
    thinks: str | None = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @abstractmethod
    def _rendered(self, query: Row | str, context: Context) -> str:
        """The prompt as text, with marks around control tokens that the data spells."""

    @abstractmethod
    def prompt_ids(self, query: Row | str, context: Context = NO_CONTEXT) -> list[int]:
        """The prompt as token ids, special tokens included."""

    def prompts(self, queries: Sequence[Row | str], contexts: Sequence[Context]) -> TokenLists:
        """The prompts as token ids, for queries with one context each."""
        made = TokenLists()
        for query, read in zip(queries, contexts, strict=True):
            # `contexts` and `queries` hold the objects, so no two of them have the same id.
            whole = None if isinstance(query, str) else query.conversation
            made.add(self.prompt_ids(query, read), key=id(read), follows=whole)
        return made

    @abstractmethod
    def completion_ids(self, row: Row) -> list[int]:
        """The row's gold output as token ids, with the tokens that end it."""

    @abstractmethod
    def answer_ids(self, row: Row) -> list[int]:
        """The row's output as token ids after its prompt, without the tokens that end it."""

    @abstractmethod
    def decode(self, completion: list[int]) -> str:
        """The answer in a completion: without thinking, special tokens and what ends it."""

    def text(self, query: Row | str, context: Context = NO_CONTEXT) -> str:
        """The prompt as text, up to where the completion begins."""
        return unmarked(self._rendered(query, context))

    def spoken(self, output: str) -> str:
        """The part of a gold output that answers are compared with."""
        return output

    @property
    def ending(self) -> Ending:
        """The stop strings and token ids that end an answer."""
        return Ending(self.stop, self.end_ids, self.tokens.text)

    def _before_stop(self, text: str) -> str:
        for stop in self.stop:
            text = text.partition(stop)[0]
        return text


class PlainPrompt(PromptFormat):
    r"""A text pattern, by default `Q: {input}\nA:`; demonstrations use the same pattern.

    Args:
        tokenizer: The tokenizer.
        pattern: Prompt, with `{input}`.
        completion: Completion, with `{output}`; the text after it ends an answer.
        separator: Text after each demonstration.
        ends: Token ids that the model names as ends of a text.
        own: Text of the task in every row. Control tokens that it spells remain tokens.
    """

    name = "plain"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pattern: str,
        completion: str,
        separator: str,
        ends: Collection[int] = (),
        own: str = "",
    ) -> None:
        super().__init__(tokenizer)
        self.separator = separator
        self.pattern = pattern
        self.before, _, after = completion.partition("{output}")
        self.stop = [after]
        self.end_ids = _ends(tokenizer, ends)
        around = ""
        with suppress(ChatTemplateError):  # there may be no template
            around = ChatTemplate(tokenizer, {}).around()
        own = "\n".join((pattern, completion, separator, own))
        self.tokens = Tokens(tokenizer, ends=self.end_ids, template=around, own=own)

    @override
    def _rendered(self, query: Row | str, context: Context) -> str:
        if context.head or (isinstance(query, Row) and query.turn):
            raise ChatTemplateError(
                "conversations have no plain format",
                allowed="--format chat, with a model that has a chat template",
                mend="use an instruction-tuned model, or rows with input and output",
            )
        query = query if isinstance(query, str) else query.input
        mark = self.tokens.marked
        # The instruction is the user's own text for every prompt, as the pattern is.
        parts = [context.document and mark(context.document), context.instruction]
        preamble = "".join(f"{part}\n\n" for part in parts if part)
        shots = "".join(
            self._prompt(row.input) + self._answer(row) + self.stop[0] + self.separator
            for row in context.demonstrations
        )
        return preamble + shots + self._prompt(query)

    @override
    def prompt_ids(self, query: Row | str, context: Context = NO_CONTEXT) -> list[int]:
        return self.tokens.ids(self._rendered(query, context), special=True)

    @override
    def completion_ids(self, row: Row) -> list[int]:
        return self._after_prompt(row, self._answer(row) + self.stop[0])

    @override
    def answer_ids(self, row: Row) -> list[int]:
        return self._after_prompt(row, self.before + self.tokens.marked(row.output or ""))

    @override
    def decode(self, completion: list[int]) -> str:
        text = self._before_stop(self.tokens.text(completion, skip_special=True))
        return without_space(as_given(text.removeprefix(self.before)))

    @property
    def splits_words(self) -> bool:
        """Whether the prompt ends in white space that would be part of an answer's first token."""
        prompt, text = self.text("query"), self.before + "answer"
        spaced = prompt != prompt.rstrip(" \t")
        return spaced and self.tokens.spans_border(prompt, text, special=True)

    def _after_prompt(self, row: Row, text: str) -> list[int]:
        prompt, ids = self._rendered(row.input, NO_CONTEXT), self.prompt_ids(row.input)
        return self.tokens.continuation(prompt, ids, text, special=True)

    def _prompt(self, query: str) -> str:
        return self.pattern.replace("{input}", self.tokens.marked(query))

    def _answer(self, row: Row) -> str:
        """An output with the text before it. The space that both bring is written once."""
        output, stop = as_given(row.output or ""), self.stop[0]
        if self.before[-1:].isspace():
            output = without_space(output)
        if stop in output or (self.before + output + stop).find(stop) < len(self.before + output):
            how = "contains" if stop in output else "ends in the beginning of"
            raise FieldError(
                f"an output {how} {stop!r}, the text that ends an answer",
                got=repr(output[:80]),
                mend="pass --format chat, or another --completion-pattern",
            )
        return self.before + self.tokens.marked(output)


@dataclass
class _Prompt:
    """A rendered prompt, and its token ids when they are known."""

    context: Context
    text: str
    ids: list[int] | None = None


class ChatPrompt(PromptFormat):
    """The chat template: demonstrations are turns, document and instruction the system turn.

    Args:
        tokenizer: The tokenizer.
        template_kwargs: Arguments of the chat template.
        ends: Token ids that the model names as ends of a turn.
        own: Text of the task in every row. Control tokens that it spells remain tokens.

    Attributes:
        opening: What the template writes before the first words of a user.

    Raises:
        ChatTemplateError: there is no usable template.
    """

    name = "chat"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template_kwargs: Mapping[str, Any],
        ends: Collection[int] = (),
        own: str = "",
    ) -> None:
        super().__init__(tokenizer)
        self.template_kwargs = dict(template_kwargs)
        self.template = ChatTemplate(tokenizer, template_kwargs)
        self._sent = lru_cache(maxsize=_SENT)(lambda one: sent(one, self.tokens.marked))
        self._last: tuple[Row | str, list[_Prompt]] = ("", [])
        self.date = self.template.date
        self.stop = []
        self.end_ids = _ends(tokenizer, ends)
        user, assistant = Message("user", QUESTION).sent(), Message("assistant", ANSWER).sent()
        self.takes_system = self._accepts([Message("system", ANSWER).sent(), user])
        prompt = self.template.render([user], generation_prompt=True)
        whole = self.template.render([user, assistant], generation_prompt=False)
        for text, what, mark in (
            (prompt, "the user's turn", QUESTION),
            (whole, "the assistant's turn", ANSWER),
        ):
            if mark not in text:
                raise ChatTemplateError(
                    f"the chat template leaves out {what}", mend="pass --format plain"
                )
        around = self.template.around() + whole
        self.tokens = Tokens(tokenizer, ends=self.end_ids, template=around, own=own)
        self.opening, _, self._tail = prompt.rpartition(QUESTION)
        self.closing = whole.rpartition(ANSWER)[2].strip()
        self.end_of_turn = self._end_of_turn(user, assistant)
        self.end_ids = sorted({*self.end_ids, *self.end_of_turn})
        self._opened = thinking.opened(self._tail)
        lead = whole[len(prompt) :].partition(ANSWER)[0] if whole.startswith(prompt) else ""
        self.thinks = self._opened[1] if self._opened else thinking.closing_of(lead)
        # The template may write a space before an answer. A template without a generation prompt
        # even leaves it to the model to write the header of its turn.
        header = self.tokens.ids("" if self.thinks else lead, special=False)
        self._header = self.tokens.text(header, skip_special=True)

    def messages(self, query: Row | str, context: Context = NO_CONTEXT) -> list[Message]:
        """The turns; the last one is the user's query, or a tool's result."""
        turns = turns_of(query, context)
        return turns if self.takes_system else folded(turns)

    @override
    def prompt_ids(self, query: Row | str, context: Context = NO_CONTEXT) -> list[int]:
        made = self._prompt(query, context)
        if made.ids is None:  # the template adds the special tokens itself
            made.ids = self.tokens.ids(made.text, special=False)
        return [*made.ids]

    @override
    def completion_ids(self, row: Row) -> list[int]:
        answer = self._answer(row)
        if self.stop and self.stop[0] in answer.content:
            raise FieldError(
                f"an output contains {self.stop[0]!r}, the text that ends a turn",
                got=repr(answer.content[:80]),
                mend="delete the row, or pass --format plain",
            )
        body, closing = self._written(row, answer)
        return [*self._after_prompt(row, body + closing), *self.end_of_turn]

    @override
    def answer_ids(self, row: Row) -> list[int]:
        answer = Message("assistant", (row.output or "").strip())
        return self._after_prompt(row, self._written(row, answer)[0])

    @override
    def decode(self, completion: list[int]) -> str:
        text = self.tokens.text(completion)
        closing = thinking.closing_of(text, inside=self._opened is not None)
        if closing is None:
            answer = self.tokens.text(completion, skip_special=True)
        else:  # the mark may be a special token, so it is looked for among the ids
            count = text.count(closing)
            number = bisect.bisect_left(
                range(len(completion) + 1),
                count,
                key=lambda n: self.tokens.text(completion[:n]).count(closing),
            )
            answer = self.tokens.text(completion[:number]).rpartition(closing)[2]
            answer += self.tokens.text(completion[number:], skip_special=True)
        answer = answer.removeprefix(self._header)
        return without_space(
            as_given(self._before_stop(self.spoken(answer)))
        )  # indentation is kept

    @override
    def spoken(self, output: str) -> str:
        return thinking.spoken(output)

    @override
    def _rendered(self, query: Row | str, context: Context) -> str:
        return self._prompt(query, context).text

    def _prompt(self, query: Row | str, context: Context) -> _Prompt:
        """A prompt. Those of the last query are kept, because each is asked for several times."""
        last, known = self._last
        if last is not query:
            known = []
            self._last = query, known
        made = next((one for one in known if one.context == context), None)
        if made is None:
            text = self._shown(self.messages(query, context), query, context)
            made = _Prompt(context, text)
            known.append(made)
        return made

    def _shown(
        self,
        messages: Sequence[Message],
        query: Row | str,
        context: Context = NO_CONTEXT,
        *,
        generation_prompt: bool = True,
    ) -> str:
        """Messages and the tools of a query as text."""
        mark = self.tokens.marked
        return self.template.render(
            [self._sent(message) for message in messages],
            generation_prompt=generation_prompt,
            tools=marked(tools_of(query, context), mark),
        )

    def _accepts(self, messages: Sequence[dict[str, Any]]) -> bool:
        try:
            self.template.render(messages, generation_prompt=True)
        except ChatTemplateError:
            return False
        return True

    def _after_prompt(self, row: Row, text: str) -> list[int]:
        prompt, ids = self._rendered(row, NO_CONTEXT), self.prompt_ids(row)
        return self.tokens.continuation(prompt, ids, text, special=False)

    def _answer(self, row: Row) -> Message:
        """The gold answer, with its thinking in its content."""
        known = row.turn.answer if row.turn else None
        if known is None:
            return Message("assistant", as_given(row.output or ""))
        return with_thoughts(replace(known, content=as_given(known.content)), self._opened)

    def _written(self, row: Row, answer: Message) -> tuple[str, str]:
        """What the model writes after the prompt, and the text that closes its turn.

        It is what the template renders: some templates put a space or an empty thinking block
        before an answer. White space that the template takes from the output is put back.

        Raises:
            ChatTemplateError: the template leaves out the calls of tools.
        """
        stop, before = "".join(self.stop), self.messages(row)
        output = self.tokens.marked(answer.content)
        prompt = self._rendered(row, NO_CONTEXT)
        whole = self._shown([*before, answer], row, generation_prompt=False)
        if whole.startswith(prompt):
            body = whole[len(prompt) :]
            if self.closing:
                body = body.rpartition(self.closing)[0]
            spoken, calls = self.spoken(output), [call.name for call in answer.tool_calls]
            shown = all(name in body for name in calls)
            if (calls and shown) or (not calls and body.rstrip().endswith(spoken.rstrip())):
                return (body if self.closing else body.rstrip()), stop
            if not calls and body.rstrip().endswith(spoken.strip()):
                lead = body.rstrip().removesuffix(spoken.strip())
                return lead + spoken.rstrip(), stop
        if answer.tool_calls:
            raise ChatTemplateError(
                "the chat template leaves out the calls of tools in an answer",
                got=f"a call of {answer.tool_calls[0].name!r}",
                mend="use a model whose template knows tools, or delete the row",
            )
        if self._opened:
            return thinking.after_opening(self._tail, output), stop
        return output, stop

    def _end_of_turn(self, user: dict[str, Any], assistant: dict[str, Any]) -> list[int]:
        """The token with which a turn ends; none if it ends in text, which becomes a stop string."""
        ids: list[int] = self.tokenizer(self.closing, add_special_tokens=False)["input_ids"]
        added = self.tokenizer.added_tokens_decoder
        if len(ids) == 1 or (ids and ids[0] in added):
            return ids[:1]
        if ids:
            found = [self.closing.find(token.content) for token in added.values()]
            cut = min((place for place in found if place > 0), default=len(self.closing))
            self.stop = [self.closing[:cut].rstrip()]
            self.closing = self.stop[0]
            return []
        # The turn may end where the next one begins.
        named = self.end_ids
        try:
            more = self.template.render([user, assistant, user], generation_prompt=False)
        except ChatTemplateError:
            more = ""
        after = more.partition(ANSWER)[2].partition(QUESTION)[0].strip()
        ids = self.tokenizer(after, add_special_tokens=False)["input_ids"]
        if ids and ids[0] in named:
            return ids[:1]
        if self.tokenizer.eos_token_id is None and not named:
            raise ChatTemplateError(
                "the chat template does not end an assistant's turn, and the tokenizer has no end-of-text token",
                mend="pass --format plain",
            )
        return [
            int(
                self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else named[0]
            )
        ]


def prompt_format(
    tokenizer: PreTrainedTokenizerBase,
    settings: sections.Prompt,
    *,
    ends: Collection[int] = (),
    own: str = "",
) -> PromptFormat:
    """Makes the prompt format; `auto` is chat if the tokenizer has a chat template.

    Args:
        tokenizer: The tokenizer.
        settings: Settings of the format.
        ends: Token ids that the model names as ends of a text or turn.
        own: Text of the task in every row. Control tokens that it spells remain tokens.

    Raises:
        ChatTemplateError: the format is chat and there is no usable template.
        ConfigError: a setting is only for the other format.
    """
    name = settings.format
    if name == "auto":
        name = "chat" if tokenizer.chat_template else "plain"
        if unread := settings.unread(name):
            raise ConfigError(
                f"{', '.join(f'prompt.{key}' for key in unread)}: has no effect in the {name} "
                f"format, which prompt.format: auto chooses for this model",
                mend=f"pass --format {'plain' if name == 'chat' else 'chat'}, or leave it out",
            )
    if name == "chat":
        return ChatPrompt(
            tokenizer, template_kwargs=settings.chat_template_kwargs, ends=ends, own=own
        )
    return PlainPrompt(
        tokenizer,
        pattern=settings.pattern,
        completion=settings.completion,
        separator=settings.separator,
        ends=ends,
        own=own,
    )


def _ends(tokenizer: PreTrainedTokenizerBase, named: Collection[int]) -> list[int]:
    """The tokenizer's end-of-text token, and the added tokens that the model names as ends.

    A configuration without this setting has a default number, which may be an ordinary token.
    """
    own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return sorted({*own, *(i for i in named if i in tokenizer.added_tokens_decoder)})
