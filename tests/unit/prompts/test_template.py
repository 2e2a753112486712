from __future__ import annotations

import datetime
from typing import Any

import pytest
from tests.unit.prompts.families import CHATML, LLAMA3, QWEN3, byte_tokenizer
from transformers.utils import chat_template_utils

from instil.errors import ChatTemplateError
from instil.prompts.template import ChatTemplate

USER = [{"role": "user", "content": "hi"}]
SPECIAL = ("<|im_start|>", "<|im_end|>")


def template(text: Any, **arguments: Any) -> ChatTemplate:
    return ChatTemplate(byte_tokenizer(SPECIAL, template=text, bos_token="<|im_start|>"), arguments)


def test_a_prompt_is_the_same_on_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for day in (1, 2):

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls(2031, 5, day)  # noqa: B023 - called in this turn of the loop

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        made.append(template(LLAMA3).render(USER, generation_prompt=True))
    assert made[0] == made[1]
    assert "Today Date: 26 Jul 2024" in made[0]
    assert template(LLAMA3).date == datetime.date(2024, 7, 26)
    assert template(CHATML).date is None


def test_a_date_of_the_users_own_is_used() -> None:
    text = template(LLAMA3, date_string="1 May 2025").render(USER, generation_prompt=True)
    assert "Today Date: 1 May 2025" in text


def test_an_argument_that_the_template_does_not_read_is_refused() -> None:
    with pytest.raises(ChatTemplateError) as caught:
        template(QWEN3, enable_thinkng=False)
    assert str(caught.value) == (
        "prompt.chat_template_kwargs: the chat template does not read 'enable_thinkng'; "
        "mend: did you mean 'enable_thinking'? If not, remove it"
    )
    assert template(QWEN3, enable_thinking=False).reads("enable_thinking")


def test_an_argument_that_instil_sets_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="instil itself sets 'add_generation_prompt'"):
        template(CHATML, add_generation_prompt=False)


def test_the_default_of_several_templates_is_used_or_the_one_that_is_named() -> None:
    several = {"default": CHATML, "short": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}
    assert "<|im_start|>user\nhi" in template(several).render(USER, generation_prompt=True)
    assert template(several, chat_template="short").render(USER, generation_prompt=True) == "hi"
    with pytest.raises(ChatTemplateError, match=r"none has the name 'shot'; allowed: 'default'"):
        template(several, chat_template="shot")


def test_several_templates_without_a_default_are_listed() -> None:
    with pytest.raises(ChatTemplateError) as caught:
        template({"rag": CHATML, "tool_use": CHATML})
    assert str(caught.value) == (
        "the model has several chat templates, and none is the default; "
        "allowed: 'rag', 'tool_use'; "
        "mend: pass --set prompt.chat_template_kwargs.chat_template=rag"
    )


def test_a_template_that_is_no_template_is_named() -> None:
    with pytest.raises(ChatTemplateError, match="does not accept these turns"):
        template("{% for m in messages %}").render(USER, generation_prompt=True)
