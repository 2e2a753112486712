"""Renders prompts and completions as token ids, in the plain or the chat format.

A prompt is rendered as one text and tokenised as one text, as a user who sends it would do. A
completion is tokenised once, and the same ids are appended to the teacher's and the student's
prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from instil.errors import ChatTemplateError, FieldError
from instil.models.generate import Ending
from instil.prompts.context import NO_CONTEXT, Context
from instil.recipe import sections
from instil.tasks.rows import Row


class PromptFormat(ABC):
    """Turns queries and outputs into token ids.

    Attributes:
        name: `plain` or `chat`.
        stop: Strings that end an answer.
        end_ids: Token ids that end an answer.
    """

    name: str
    stop: list[str]
    end_ids: list[int]

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @abstractmethod
    def text(self, query: str, context: Context = NO_CONTEXT) -> str:
        """The prompt as text, up to where the completion begins."""

    @abstractmethod
    def prompt_ids(self, query: str, context: Context = NO_CONTEXT) -> list[int]:
        """The prompt as token ids, special tokens included."""

    @abstractmethod
    def completion_ids(self, row: Row) -> list[int]:
        """The row's gold output as token ids, with the tokens that end it."""

    @abstractmethod
    def answer_ids(self, row: Row) -> list[int]:
        """The row's output as token ids after its prompt, without the tokens that end it."""

    @property
    def ending(self) -> Ending:
        """The stop strings and token ids that end an answer."""
        return Ending(self.stop, self.end_ids, lambda ids: str(self.tokenizer.decode(ids)))

    def decode(self, completion: list[int]) -> str:
        """The text of a completion up to the first stop string, without special tokens."""
        text = str(self.tokenizer.decode(completion, skip_special_tokens=True))
        for stop in self.stop:
            text = text.partition(stop)[0]
        return text.strip()

    def _continuation(
        self, prompt: str, prompt_ids: list[int], text: str, *, special: bool
    ) -> list[int]:
        """Token ids of `text` after `prompt`; tokenised alone if tokens would span the border."""
        joined: list[int] = self.tokenizer(prompt + text, add_special_tokens=special)["input_ids"]
        # Some tokenizers end every text with a special token, which must not be in the completion.
        if (
            joined[: len(prompt_ids)] == prompt_ids
            and self.tokenizer.eos_token_id not in joined[len(prompt_ids) :]
        ):
            return joined[len(prompt_ids) :]
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


class PlainPrompt(PromptFormat):
    r"""A text pattern, by default `Q: {input}\nA:`; demonstrations use the same pattern."""

    name = "plain"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, pattern: str, completion: str, separator: str
    ) -> None:
        super().__init__(tokenizer)
        self.separator = separator
        self.pattern = pattern
        self.completion = completion
        self.stop = [completion.partition("{output}")[2]]
        self.end_ids = [i for i in [tokenizer.eos_token_id] if i is not None]

    @override
    def text(self, query: str, context: Context = NO_CONTEXT) -> str:
        preamble = f"{context.preamble}\n\n" if context.preamble else ""
        shots = "".join(
            self._prompt(row.input) + self._answer(row) + self.separator
            for row in context.demonstrations
        )
        return preamble + shots + self._prompt(query)

    @override
    def prompt_ids(self, query: str, context: Context = NO_CONTEXT) -> list[int]:
        ids: list[int] = self.tokenizer(self.text(query, context))["input_ids"]
        return ids

    @override
    def completion_ids(self, row: Row) -> list[int]:
        prompt = self.text(row.input)
        return self._continuation(
            prompt, self.prompt_ids(row.input), self._answer(row), special=True
        )

    @override
    def answer_ids(self, row: Row) -> list[int]:
        before = self.completion.partition("{output}")[0]
        prompt = self.text(row.input)
        return self._continuation(
            prompt, self.prompt_ids(row.input), before + (row.output or ""), special=True
        )

    def _prompt(self, query: str) -> str:
        return self.pattern.replace("{input}", query)

    def _answer(self, row: Row) -> str:
        output = (row.output or "").strip()
        if self.stop[0] in output:
            raise FieldError(
                f"an output contains {self.stop[0]!r}, the text that ends an answer",
                got=repr(output[:80]),
                mend="pass --format chat, or another --completion-pattern",
            )
        return self.completion.replace("{output}", output)


class ChatPrompt(PromptFormat):
    """The chat template: demonstrations are turns, document and instruction the system turn."""

    name = "chat"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, template_kwargs: dict[str, Any]
    ) -> None:
        super().__init__(tokenizer)
        if not tokenizer.chat_template:
            raise ChatTemplateError(
                "the format is chat, but the model has no chat template",
                allowed="--format plain, or a model with a chat template",
                mend="pass --format plain",
            )
        self.template_kwargs = template_kwargs
        self.stop = []
        self.end_of_turn = self._end_of_turn()
        self.end_ids = sorted(
            {self.end_of_turn, *[i for i in [tokenizer.eos_token_id] if i is not None]}
        )

    def messages(self, query: str, context: Context = NO_CONTEXT) -> list[dict[str, str]]:
        """The turns; the last one is the user's query."""
        turns = [{"role": "system", "content": context.preamble}] if context.preamble else []
        for row in context.demonstrations:
            turns.append({"role": "user", "content": row.input})
            turns.append({"role": "assistant", "content": (row.output or "").strip()})
        return [*turns, {"role": "user", "content": query}]

    @override
    def text(self, query: str, context: Context = NO_CONTEXT) -> str:
        return self._render(self.messages(query, context), generation_prompt=True)

    @override
    def prompt_ids(self, query: str, context: Context = NO_CONTEXT) -> list[int]:
        # The template adds the special tokens itself.
        ids: list[int] = self.tokenizer(self.text(query, context), add_special_tokens=False)[
            "input_ids"
        ]
        return ids

    @override
    def completion_ids(self, row: Row) -> list[int]:
        answer = (row.output or "").strip()
        prompt, ids = self.text(row.input), self.prompt_ids(row.input)
        turns = [*self.messages(row.input), {"role": "assistant", "content": answer}]
        rendered = self._render(turns, generation_prompt=False)
        if self.closing and rendered.startswith(prompt) and answer in rendered[len(prompt) :]:
            # Use the answer as the template renders it: some templates put a space before it.
            answer = rendered[len(prompt) :].rpartition(self.closing)[0]
        return [*self._continuation(prompt, ids, answer, special=False), self.end_of_turn]

    @override
    def answer_ids(self, row: Row) -> list[int]:
        return self.completion_ids(row)[:-1]

    def _render(self, messages: list[dict[str, str]], *, generation_prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self.template_kwargs,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ChatTemplateError(
                "the chat template does not accept these turns",
                got=f"roles {', '.join(m['role'] for m in messages)}; the template says: {error}",
                mend="pass --format plain, or use a context without the turn that it does not accept",
            ) from None
        return str(text)

    def _end_of_turn(self) -> int:
        """The token with which the template ends an assistant's turn."""
        mark = "instil end of turn probe"
        turns = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]
        self.closing = self._render(turns, generation_prompt=False).rpartition(mark)[2].strip()
        ids = self.tokenizer(self.closing, add_special_tokens=False)["input_ids"]
        if ids:
            return int(ids[0])
        if self.tokenizer.eos_token_id is None:
            raise ChatTemplateError(
                "the chat template does not end an assistant's turn, and the tokenizer has no end-of-text token",
                mend="pass --format plain",
            )
        return int(self.tokenizer.eos_token_id)


def prompt_format(tokenizer: PreTrainedTokenizerBase, settings: sections.Prompt) -> PromptFormat:
    """Makes the prompt format; `auto` is chat if the tokenizer has a chat template.

    Raises:
        ChatTemplateError: the format is chat and there is no usable template.
    """
    name = settings.format
    if name == "auto":
        name = "chat" if tokenizer.chat_template else "plain"
    if name == "chat":
        return ChatPrompt(tokenizer, template_kwargs=settings.chat_template_kwargs)
    return PlainPrompt(
        tokenizer,
        pattern=settings.pattern,
        completion=settings.completion,
        separator=settings.separator,
    )
