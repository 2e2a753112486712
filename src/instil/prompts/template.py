"""A tokenizer's chat template: which one it is, its arguments, and its date."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from instil.errors import ChatTemplateError, did_you_mean

TODAY = date(2024, 7, 26)
"""The date that a template shows as today's. A prompt must be the same on every day."""

Sent = dict[str, Any]
"""A message in the form that templates read."""

_TODAYS_DATE = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(['"])(.*?)\1\s*\)""")
_SET_BY_INSTIL = {
    "add_generation_prompt",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
}
_WHICH = "chat_template"  # the argument that names one of several templates


class ChatTemplate:
    """The chat template of a tokenizer.

    Attributes:
        text: The template, with a fixed date in place of today's.
        date: The date that prompts show as today's; None if the template does not ask for it.

    Args:
        tokenizer: The tokenizer.
        arguments: Arguments of the template. `chat_template` names one of several templates.

    Raises:
        ChatTemplateError: there is no template, or it does not read one of the arguments.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> None:
        if not tokenizer.chat_template:
            raise ChatTemplateError(
                "the format is chat, but the model has no chat template",
                allowed="--format plain, or a model with a chat template",
                mend="pass --format plain",
            )
        self._tokenizer = tokenizer
        self._arguments = {name: v for name, v in arguments.items() if name != _WHICH}
        text = _chosen(tokenizer, arguments)
        self.text = _TODAYS_DATE.sub(lambda found: json.dumps(TODAY.strftime(found[2])), text)
        self.date = TODAY if self.text != text else None
        for name in self._arguments:
            self._check(name)

    def render(
        self,
        messages: Sequence[Sent],
        *,
        generation_prompt: bool,
        tools: Sequence[Any] | None = None,
    ) -> str:
        """Renders turns as one text.

        Args:
            messages: The turns.
            generation_prompt: Whether the assistant's turn is opened at the end.
            tools: Definitions of tools; None if there are none.

        Raises:
            ChatTemplateError: the template does not accept the turns.
        """
        more: dict[str, Any] = {"tools": list(tools)} if tools else {}
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **more,
                **self._arguments,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise ChatTemplateError(
                "the chat template does not accept these turns",
                got=f"roles {', '.join(m['role'] for m in messages)}; the template says: {error}",
                mend="pass --format plain, or use a context without the turn that it does not accept",
            ) from None
        return str(text)

    def around(self) -> str:
        """What the template writes around turns of every role, with a generation prompt."""
        turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
        for first in ([{"role": "system", "content": "x"}], []):
            with suppress(ChatTemplateError):
                return self.render([*first, *turns], generation_prompt=True)
        return ""

    def reads(self, name: str) -> bool:
        """Whether the template contains this name."""
        return re.search(rf"\b{re.escape(name)}\b", self.text) is not None

    def _check(self, name: str) -> None:
        if name in _SET_BY_INSTIL:
            raise ChatTemplateError(
                f"prompt.chat_template_kwargs: instil itself sets {name!r}", mend="remove it"
            )
        if not self.reads(name):
            tags = " ".join(re.findall(r"\{[{%].*?[}%]\}", self.text, flags=re.DOTALL))
            similar = did_you_mean(name, set(re.findall(r"\b[a-z]\w{2,}\b", tags)))
            raise ChatTemplateError(
                f"prompt.chat_template_kwargs: the chat template does not read {name!r}",
                mend=f"{similar} If not, remove it" if similar.endswith("?") else "remove it",
            )


def _chosen(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> str:
    """The text of the template. A tokenizer may have several, with names."""
    known, name = tokenizer.chat_template, arguments.get(_WHICH)
    if not isinstance(known, dict) or (name is None and "default" in known) or name in known:
        return str(tokenizer.get_chat_template(name, tools=arguments.get("tools")))
    raise ChatTemplateError(
        f"the model has several chat templates, and none has the name {name!r}"
        if name
        else "the model has several chat templates, and none is the default",
        allowed=", ".join(map(repr, sorted(known))),
        mend=f"pass --set prompt.chat_template_kwargs.chat_template={min(known)}",
    )
