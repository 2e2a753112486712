from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import byte_tokenizer

from instil.errors import ChatTemplateError, FieldError
from instil.prompts.context import NO_CONTEXT, Context, Document, FewShot, Instruction
from instil.prompts.format import ChatPrompt, PlainPrompt, prompt_format
from instil.recipe import sections
from instil.tasks.rows import Row

SHOTS = FewShot([{"input": "one", "output": "1"}, {"input": "two", "output": "2"}])
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    str.strip
)


def plain() -> PlainPrompt:
    return PlainPrompt(
        byte_tokenizer(), pattern="Q: {input}\nA:", completion=" {output}\n", separator="\n"
    )


def chat(**template_kwargs: object) -> ChatPrompt:
    return ChatPrompt(byte_tokenizer(), template_kwargs=template_kwargs)


def test_plain_text_with_every_part() -> None:
    context = Context.of([SHOTS, Instruction("Write digits."), Document("Numbers.")])
    assert plain().text("six", context) == (
        "Numbers.\n\nWrite digits.\n\nQ: one\nA: 1\n\nQ: two\nA: 2\n\nQ: six\nA:"
    )
    assert plain().text("six") == "Q: six\nA:"


def test_chat_puts_demonstrations_in_turns_and_the_rest_in_the_system_turn() -> None:
    context = Context.of([SHOTS, Instruction("Write digits.")])
    roles = [(m["role"], m["content"]) for m in chat().messages("six", context)]
    assert roles == [
        ("system", "Write digits."),
        ("user", "one"),
        ("assistant", "1"),
        ("user", "two"),
        ("assistant", "2"),
        ("user", "six"),
    ]
    assert chat().text("six").endswith("<|start|>user\nsix<|end|>\n<|start|>assistant\n")


def test_template_arguments_arrive_as_keywords() -> None:
    assert chat(enable_thinking=False).text("x").endswith("[no thinking]")
    assert "[no thinking]" not in chat().text("x")


def test_a_chat_completion_ends_in_the_end_of_turn_token() -> None:
    form = chat()
    ids = form.completion_ids(Row("six", "6"))
    assert form.tokenizer.convert_ids_to_tokens(ids) == ["6", "<|end|>"]
    assert form.end_ids == [ids[-1]]


def test_a_plain_completion_ends_in_the_stop_string() -> None:
    form = plain()
    assert form.tokenizer.decode(form.completion_ids(Row("six", " 6 "))) == " 6\n"
    assert form.stop == ["\n"]


def test_auto_is_chat_where_there_is_a_template() -> None:
    assert prompt_format(byte_tokenizer(), sections.Prompt()).name == "chat"
    assert prompt_format(byte_tokenizer(chat=False), sections.Prompt()).name == "plain"
    assert prompt_format(byte_tokenizer(), sections.Prompt(format="plain")).name == "plain"


def test_chat_without_a_template_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match=r"no chat template.*--format plain"):
        prompt_format(byte_tokenizer(chat=False), sections.Prompt(format="chat"))


def test_a_template_that_refuses_a_turn_is_named() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}"
        "{% endif %}{{ m['content'] }}<|end|>{% endfor %}"
    )
    form = ChatPrompt(tokenizer, template_kwargs={})
    with pytest.raises(ChatTemplateError, match="no system turn"):
        form.text("x", Context.of(Instruction("do it")))


def test_an_output_that_holds_the_stop_string_is_refused() -> None:
    with pytest.raises(FieldError, match="the text that ends an answer"):
        plain().completion_ids(Row("x", "two\nlines"))
    assert chat().completion_ids(Row("x", "two\nlines"))


@given(query=words, output=words)
def test_any_completion_decodes_to_its_output(query: str, output: str) -> None:
    for form in (plain(), chat()):
        row = Row(query, output)
        assert form.decode(form.completion_ids(row)) == output.strip()


@given(query=words, shots=st.lists(st.tuples(words, words), max_size=3))
def test_the_teacher_prompt_ends_in_the_student_prompt(
    query: str, shots: list[tuple[str, str]]
) -> None:
    context = Context(demonstrations=tuple(Row(i, o) for i, o in shots))
    form = plain()
    whole, alone = form.prompt_ids(query, context), form.prompt_ids(query, NO_CONTEXT)
    assert whole[-len(alone) :] == alone
