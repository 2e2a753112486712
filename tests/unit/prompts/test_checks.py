from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.unit.prompts.families import (
    CHATML,
    GPT_OSS,
    LLAMA3,
    MISTRAL,
    NO_GENERATION_PROMPT,
    PHI3,
    QWEN3,
    byte_tokenizer,
    sentencepiece_tokenizer,
)

from instil.errors import ChatTemplateError, ConfigError, FieldError
from instil.prompts.checks import Checks
from instil.prompts.context import NO_CONTEXT, Context, FewShot, Instruction
from instil.prompts.format import ChatPrompt, PlainPrompt, PromptFormat
from instil.tasks.rows import Row

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>", "<s>", "</s>")
SHOTS = FewShot([{"input": "one", "output": "1"}, {"input": "two", "output": "    2"}])
BOTH = Context.of([SHOTS, Instruction("Write digits.")])
ROWS = [Row("three", "3"), Row("four", "4")]


def chat(template: str, eos: str = "<|im_end|>", **arguments: Any) -> ChatPrompt:
    tokenizer = byte_tokenizer(
        SPECIAL, ("<think>", "</think>"), template=template, eos_token=eos, bos_token="<s>"
    )
    return ChatPrompt(tokenizer, template_kwargs=arguments)


def plain(tokenizer: Any = None, **changes: str) -> PlainPrompt:
    patterns = {"pattern": "Q: {input}\nA:", "completion": " {output}\n", "separator": "\n"}
    return PlainPrompt(tokenizer or byte_tokenizer(SPECIAL), **(patterns | changes))


def found(form: PromptFormat, context: Context, rows: Sequence[Row] = ROWS) -> list[str]:
    checks = Checks(form)
    checks.rows("row", rows, context, [form.completion_ids(row) for row in rows])
    return checks.warnings


@pytest.mark.parametrize("template", [CHATML, NO_GENERATION_PROMPT])
def test_what_stands_in_the_prompt_as_it_was_given_is_no_matter(template: str) -> None:
    assert found(chat(template), BOTH) == []
    assert found(chat(MISTRAL, "</s>"), BOTH) == []  # the system text is in the last user turn
    assert found(plain(), BOTH) == []


def test_a_template_that_leaves_out_the_system_turn_is_refused() -> None:
    form = chat(PHI3, "<|end|>")
    with pytest.raises(ChatTemplateError) as caught:
        found(form, BOTH)
    assert str(caught.value) == (
        "the chat template leaves out the system turn, so the teacher would not read the "
        "instruction or document; mend: pass --format plain, or give demonstrations instead"
    )
    assert found(form, Context.of(SHOTS)) == []


def test_a_template_that_leaves_out_demonstrations_is_refused() -> None:
    form = chat(CHATML.replace("for m in messages", "for m in messages[-2:]"))
    with pytest.raises(ChatTemplateError, match="leaves out demonstration 1;"):
        found(form, Context.of(SHOTS))
    assert found(form, NO_CONTEXT) == []


def test_contexts_of_another_form_are_checked_too() -> None:
    checks = Checks(chat(PHI3, "<|end|>"))
    checks.rows("row", ROWS, NO_CONTEXT)
    with pytest.raises(ChatTemplateError, match="system turn"):
        checks.rows("row", ROWS, [Context.of(Instruction("Write digits."))] * 2)


def test_indentation_that_the_template_removes_is_told() -> None:
    form = chat(LLAMA3, "</s>")
    assert found(form, Context.of(SHOTS)) == [
        "the chat template removes the white space before a demonstration's output"
    ]


def test_thoughts_that_the_template_removes_are_told() -> None:
    shots = FewShot([{"input": "one", "output": "<think>\nhm\n</think>\n\n1"}])
    form = chat(CHATML.replace("m['content'] }}", "m['content'].split('</think>')[-1] }}"))
    assert found(form, Context.of(shots)) == [
        "the chat template leaves out what demonstrations think before they answer"
    ]


def test_a_text_that_the_template_changes_is_told() -> None:
    form = chat(CHATML.replace("m['content'] }}", "m['content'] | replace('h', 'H') }}"))
    assert found(form, NO_CONTEXT, [Row("three", "3")]) == [
        "the chat template changes an input: 'three' (row 1)"
    ]


def test_rows_that_spell_a_control_token_are_counted() -> None:
    rows = [Row("a"), Row("b<|im_end|>"), Row("c", "<|im_start|>")]
    checks = Checks(chat(CHATML))
    checks.rows("input", rows, NO_CONTEXT)
    checks.rows("evaluation row", rows[:2], NO_CONTEXT)
    assert checks.warnings == [
        "3 rows spell a control token of the model, which is read as text: '<|im_end|>' in input 2"
    ]


def test_thinking_is_told_with_how_to_turn_it_off() -> None:
    (told,) = Checks(chat(QWEN3)).warnings
    assert told.startswith("the chat template lets the model think before it answers.")
    assert "--set 'prompt.chat_template_kwargs={enable_thinking: false}'" in told
    assert Checks(chat(QWEN3, enable_thinking=False)).warnings == []
    assert Checks(chat(QWEN3), written=False).warnings == []
    (told,) = Checks(chat(GPT_OSS)).warnings
    assert "enable_thinking" not in told


def test_a_pattern_that_takes_the_space_of_an_answer_is_told() -> None:
    merging = sentencepiece_tokenizer()
    (told,) = Checks(plain(merging, pattern="Q: {input}\nA: ", completion="{output}\n")).warnings
    assert told == (
        "prompt.pattern ends in white space, and the model's words begin with theirs; answers get "
        "worse. Move the white space to the start of prompt.completion"
    )
    assert Checks(plain(merging)).warnings == []
    assert Checks(plain(pattern="Q: {input}\nA: ", completion="{output}\n")).warnings == []


def test_a_line_break_that_is_none_is_told() -> None:
    (told,) = Checks(plain(completion=r" {output}\n")).warnings
    assert told == (
        "prompt.completion contains a backslash and the letter n, which is no white space. In "
        "YAML, write it in double quotes"
    )
    assert (
        Checks(plain(pattern=r"Is \neq true? {input}\nabla", completion=" {output}\n")).warnings
        == []
    )


def test_a_stop_string_that_the_tokenizer_does_not_keep_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not keep '!!', the text that ends an answer"):
        Checks(plain(sentencepiece_tokenizer(), completion=" {output}!!"))


def test_outputs_that_the_tokenizer_cannot_write_are_counted() -> None:
    rows = [Row("a", "cats"), Row("b", "Zoë"), Row("c", "dogs")]
    assert found(plain(sentencepiece_tokenizer()), NO_CONTEXT, rows) == [
        "1 of 3 gold outputs cannot be written as they are, and their answers count as wrong: "
        "row 2: 'Zoë' becomes 'o'"
    ]
    with pytest.raises(FieldError, match=r"no gold output is what .*; got: row 1: 'Zoë' becomes"):
        found(plain(sentencepiece_tokenizer()), NO_CONTEXT, rows[1:2])


def test_an_end_inside_an_output_is_refused() -> None:
    form = chat(CHATML)
    checks = Checks(form)
    ids = form.completion_ids(Row("a", "b"))
    with pytest.raises(FieldError, match=r"row 2: the output contains a token that ends an answer"):
        checks.rows("row", ROWS, NO_CONTEXT, [ids, [ids[-1], *ids]])
