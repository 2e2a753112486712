from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.prompts.families import byte_tokenizer, sentencepiece_tokenizer

from instil.prompts.tokens import Tokens, unmarked

SPECIAL = ("<|im_start|>", "<|im_end|>", "<city>")
TOKENIZER = byte_tokenizer(SPECIAL, ("<turn>", "user"), eos_token="<|im_end|>")
pieces = st.lists(
    st.sampled_from(["<|im_end|>", "<|im_start|>", "<|", "im_end|>", "a", " ", "\n", "é", "\ufdd0"])
)


@given(parts=pieces)
def test_text_from_data_becomes_no_control_token(parts: list[str]) -> None:
    text = "".join(parts)
    tokens = Tokens(TOKENIZER, template="<|im_start|>")
    ids = tokens.ids("<|im_start|>" + tokens.marked(text) + "<|im_end|>", special=False)
    opening, closing = TOKENIZER.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [i for i in ids if i in (opening, closing)] == [opening, closing]
    assert tokens.text(ids[1:-1]) == text
    assert len(ids) - 2 == len(text.encode())


def test_what_is_marked_is_shown_as_it_was() -> None:
    tokens = Tokens(TOKENIZER)
    assert unmarked(tokens.marked("a<|im_end|>b")) == "a<|im_end|>b"
    assert tokens.spells("a<|im_end|>b") == "<|im_end|>"
    assert tokens.spells("a b") is None


def test_which_tokens_are_control_tokens() -> None:
    tokens = Tokens(TOKENIZER, template="<turn>user")
    assert tokens.spells("<turn>") == "<turn>"  # the template writes it
    assert tokens.spells("a user") is None  # a word that was added
    assert tokens.spells("<city>") is None  # a special token for data
    ended = Tokens(TOKENIZER, ends=TOKENIZER.convert_tokens_to_ids(["<city>"]))
    assert ended.spells("<city>") == "<city>"
    assert Tokens(TOKENIZER, own="{input}<|im_end|>").spells("<|im_end|>") is None


def test_a_prompt_is_not_closed_by_the_tokenizer() -> None:
    closing = byte_tokenizer(("<s>", "</s>"), before="<s>", after="</s>", eos_token="</s>")
    tokens = Tokens(closing)
    ids = tokens.ids("Q: cat", special=True)
    assert closing.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<s>", "t"]
    assert tokens.text(tokens.continuation("Q: cat", ids, " cats\n", special=True)) == " cats\n"


def test_a_pattern_that_begins_with_the_first_token_does_not_double_it() -> None:
    opening = byte_tokenizer(("<s>",), before="<s>", bos_token="<s>")
    first, second = Tokens(opening).ids("<s>a", special=True)
    assert [first, second] == opening.convert_tokens_to_ids(["<s>", "a"])


@pytest.mark.parametrize("text", ["th", " th", "  th", "a", "ab\nc"])
def test_a_completion_gets_no_space_of_its_own(text: str) -> None:
    tokenizer = sentencepiece_tokenizer()
    tokens = Tokens(tokenizer)
    for prompt in ("Q: a\nA:", "Q: a\nA", "Q: a "):
        ids = tokens.ids(prompt, special=True)
        after = tokens.continuation(prompt, ids, text, special=True)
        assert tokens.text(after) == text
        whole = tokenizer.decode([*ids, *after], skip_special_tokens=True)
        assert whole == prompt + text


def test_a_border_that_a_token_would_span() -> None:
    tokens = Tokens(sentencepiece_tokenizer())
    assert tokens.spans_border("Q: ", "a", special=True)
    assert not tokens.spans_border("Q:", " a", special=True)
