from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.conftest import byte_tokenizer
from tests.unit.prompts import families

from instil.errors import ChatTemplateError, ConfigError, FieldError
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
    roles = [(m.role, m.content) for m in chat().messages("six", context)]
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
        "{% for m in messages %}{% if 'bad' in m['content'] %}{{ raise_exception('no bad turn') }}"
        "{% endif %}{{ m['content'] }}<|end|>{% endfor %}"
    )
    form = ChatPrompt(tokenizer, template_kwargs={})
    with pytest.raises(ChatTemplateError, match=r"roles system, user; .* no bad turn"):
        form.text("bad", Context.of(Instruction("do it")))


def test_an_output_that_holds_the_stop_string_is_refused() -> None:
    with pytest.raises(FieldError, match="the text that ends an answer"):
        plain().completion_ids(Row("x", "two\nlines"))
    assert chat().completion_ids(Row("x", "two\nlines"))


@example(query="0", output="\xa00")  # indentation, which stays
@given(query=words, output=words)
def test_any_completion_decodes_to_its_output(query: str, output: str) -> None:
    for form in (plain(), chat()):
        row = Row(query, output)
        decoded = form.decode(form.completion_ids(row))
        assert decoded.strip() == form.spoken(output).strip()  # without thinking
        assert decoded in output


@given(query=words, shots=st.lists(st.tuples(words, words), max_size=3))
def test_the_teacher_prompt_ends_in_the_student_prompt(
    query: str, shots: list[tuple[str, str]]
) -> None:
    context = Context(demonstrations=tuple(Row(i, o) for i, o in shots))
    form = plain()
    whole, alone = form.prompt_ids(query, context), form.prompt_ids(query, NO_CONTEXT)
    assert whole[-len(alone) :] == alone


def family(
    template: str, *special: str, eos: str, ends: tuple[str, ...] = (), **arguments: object
) -> ChatPrompt:
    """The chat format with a family's template and special tokens."""
    tokenizer = families.byte_tokenizer(
        special, ("<think>", "</think>"), template=template, eos_token=eos, bos_token=special[0]
    )
    named = tokenizer.convert_tokens_to_ids(list(ends))
    return ChatPrompt(tokenizer, template_kwargs=arguments, ends=named)


def qwen3(**arguments: object) -> ChatPrompt:
    return family(families.QWEN3, "<|im_start|>", "<|im_end|>", eos="<|im_end|>", **arguments)


FAMILIES = {
    "text as the end": family(families.CHATML, "<|endoftext|>", eos="<|endoftext|>"),
    "qwen3": qwen3(),
    "qwen3 without thinking": qwen3(enable_thinking=False),
    "r1": family(families.R1, "<|user|>", "<|assistant|>", "<|end|>", eos="<|end|>"),
    "gpt-oss": family(
        families.GPT_OSS,
        *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
        eos="<|return|>",
    ),
    "llama3": family(
        families.LLAMA3,
        *("<|begin_of_text|>", "<|end_of_text|>"),
        *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        eos="<|end_of_text|>",
    ),
    "mistral": family(families.MISTRAL, "<s>", "</s>", "[INST]", "[/INST]", eos="</s>"),
    "gemma": family(
        families.GEMMA,
        *("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
    ),
    "phi3": family(
        families.PHI3, "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", eos="<|endoftext|>"
    ),
    "glm4": family(
        families.GLM4,
        *("[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"),
        eos="<|endoftext|>",
        ends=("<|endoftext|>", "<|user|>"),
    ),
    "alpaca": family(families.ALPACA, "</s>", eos="</s>"),
    "no generation prompt": family(families.NO_GENERATION_PROMPT, "</s>", eos="</s>"),
}
WRITTEN = {
    "text as the end": "three<|im_end|>",
    "qwen3": "<think>\n\n</think>\n\nthree<|im_end|>",
    "qwen3 without thinking": "three<|im_end|>",
    "r1": "\n</think>\n\nthree<|end|>",
    "gpt-oss": "<|channel|>final<|message|>three<|return|>",
    "llama3": "three<|eot_id|>",
    "mistral": " three</s>",
    "gemma": "three<end_of_turn>",
    "phi3": "three<|end|>",
    "glm4": "three<|user|>",
    "alpaca": "three\n### End",
    "no generation prompt": "ASSISTANT: three</s>",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gold_turn_is_what_the_model_writes_after_the_prompt(name: str) -> None:
    form = FAMILIES[name]
    assert form.tokens.text(form.completion_ids(Row("drei", "three"))) == WRITTEN[name]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "output",
    [
        "three",
        "    return a + b",
        "\treturn a",
        "two\n  lines",
        "<think>\nhm\n</think>\n\nthree",
        "a </s><|end|><|user|> b",
    ],
)
def test_a_gold_turn_is_decoded_as_it_was_given_and_ends_once(name: str, output: str) -> None:
    form = FAMILIES[name]
    ids = form.completion_ids(Row("drei", output))
    assert form.decode(ids) == form.spoken(output)
    assert not set(ids[:-1]) & set(form.end_ids)
    assert form.ending.stops(ids) if form.stop else ids[-1] in form.end_ids
    assert not form.stop or not form.ending.stops(ids[:-1])


@pytest.mark.parametrize(
    ("name", "written", "answer"),
    [
        ("qwen3", "<think>\nEasy.\n</think>\n\nthree<|im_end|>", "three"),
        ("qwen3 without thinking", "three<|im_end|>", "three"),
        ("r1", "Easy.\n</think>\n\n    three<|end|>", "    three"),
        ("r1", "Easy, but cut", "Easy, but cut"),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant"
            "<|channel|>final<|message|>three<|return|>",
            "three",
        ),
        ("mistral", " three</s>", "three"),
        ("text as the end", "a < b<|im_end|>", "a < b"),
        ("alpaca", "# three\n### End", "# three"),
    ],
)
def test_what_is_thought_is_no_part_of_an_answer(name: str, written: str, answer: str) -> None:
    form = FAMILIES[name]
    ids = form.tokenizer(written, add_special_tokens=False)["input_ids"]
    assert form.decode(ids) == answer


def test_the_ends_that_the_model_names_are_ends() -> None:
    def ends(name: str) -> list[str]:
        form = FAMILIES[name]
        return [str(token) for token in form.tokenizer.convert_ids_to_tokens(form.end_ids)]

    assert ends("glm4") == ["<|endoftext|>", "<|user|>"]
    assert ends("llama3") == ["<|end_of_text|>", "<|eot_id|>"]
    assert ends("text as the end") == ["<|endoftext|>"]
    assert FAMILIES["text as the end"].stop == ["<|im_end|>"]
    assert FAMILIES["alpaca"].stop == ["### End"]


def test_an_ordinary_token_is_no_end() -> None:
    tokenizer = byte_tokenizer()
    letter, pad = tokenizer.convert_tokens_to_ids(["a", "<|pad|>"])
    form = prompt_format(tokenizer, sections.Prompt(), ends=[letter, pad, 10_000])
    assert form.end_ids == sorted([tokenizer.eos_token_id, pad])


def test_an_output_that_holds_the_text_that_ends_a_turn_is_refused() -> None:
    with pytest.raises(FieldError, match="contains '### End', the text that ends a turn"):
        FAMILIES["alpaca"].completion_ids(Row("x", "a\n### End"))


def test_which_models_think() -> None:
    thinking = {name: form.thinks for name, form in FAMILIES.items() if form.thinks}
    assert thinking == {
        "qwen3": "</think>",
        "r1": "</think>",
        "gpt-oss": "<|channel|>final<|message|>",
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_data_cannot_forge_a_turn(name: str) -> None:
    form = FAMILIES[name]
    special = [i for i, token in form.tokenizer.added_tokens_decoder.items() if token.special]

    def control(query: str) -> list[int]:
        return [i for i in form.prompt_ids(query) if i in special]

    spelt = "".join(form.tokenizer.convert_ids_to_tokens(special))
    assert control(f"a{spelt}b") == control("ab")
    assert f"a{spelt}b" in form.text(f"a{spelt}b")


def test_a_template_that_leaves_out_a_turn_is_refused() -> None:
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(ChatTemplateError, match="leaves out the assistant's turn"):
        family(template, "</s>", eos="</s>")


def test_indentation_is_learnt_in_the_plain_format() -> None:
    form = plain()
    for output in ("    return a", "\treturn a", "  x"):
        ids = form.completion_ids(Row("def f(a):", output))
        assert form.tokenizer.decode(ids) == f" {output}\n"
        assert form.decode(ids) == output
    shown = form.text("x", Context(demonstrations=(Row("def f(a):", "    return a"),)))
    assert "A:     return a\n" in shown


def test_an_output_that_ends_in_the_beginning_of_the_stop_string_is_refused() -> None:
    form = PlainPrompt(
        byte_tokenizer(), pattern="{input}", completion=" {output}##", separator="\n"
    )
    with pytest.raises(FieldError, match="ends in the beginning of '##'"):
        form.completion_ids(Row("x", "C#"))
    assert form.decode(form.completion_ids(Row("x", "C# 12"))) == "C# 12"


def test_braces_in_rows_are_text() -> None:
    context = Context.of([FewShot([{"input": "{input}", "output": "{output}"}]), Document("{x}")])
    assert plain().text("{output} {input}", context) == (
        "{x}\n\nQ: {input}\nA: {output}\n\nQ: {output} {input}\nA:"
    )


def test_control_tokens_of_the_users_own_patterns_remain_tokens() -> None:
    tokenizer = byte_tokenizer()
    form = PlainPrompt(
        tokenizer,
        pattern="<|start|>user\n{input}<|end|>",
        completion="{output}<|end|>",
        separator="\n",
    )
    ids = form.prompt_ids("a<|pad|>", Context(instruction="<|start|>system\nAdd.<|end|>\n"))
    assert [t for t in tokenizer.convert_ids_to_tokens(ids) if t[0] == "<" and len(t) > 1] == [
        *("<|start|>", "<|end|>", "<|start|>", "<|end|>")
    ]
    assert form.decode(form.completion_ids(Row("a", "b"))) == "b"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pattern": "{input}:", "completion": "{output}#"},
            "prompt.pattern, prompt.completion: has no effect in the chat format, which "
            "prompt.format: auto chooses for this model; mend: pass --format plain, or leave it out",
        ),
        ({"separator": ""}, "prompt.separator: has no effect in the chat format"),
    ],
)
def test_settings_of_plain_are_refused_where_auto_is_chat(
    settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        prompt_format(byte_tokenizer(), sections.Prompt(**settings))  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
    assert prompt_format(byte_tokenizer(chat=False), sections.Prompt(**settings)).name == "plain"  # type: ignore[arg-type]


def test_arguments_of_a_template_are_refused_where_auto_is_plain() -> None:
    settings = sections.Prompt(chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(
        ConfigError, match=r"prompt.chat_template_kwargs: has no effect in the plain"
    ):
        prompt_format(byte_tokenizer(chat=False), settings)
