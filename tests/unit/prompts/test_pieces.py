"""Texts that are tokenised in pieces have the ids of the whole texts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.prompts.families import byte_tokenizer, sentencepiece_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from instil.prompts.pieces import FIRST_TEXTS, Pieces
from instil.prompts.tokens import Tokens

OPEN, CLOSE = "<|im_start|>", "<|im_end|>"
WORDS = [
    "the cat's",
    "a",
    " b",
    "c ",
    "\n",
    "\n\n",
    "  ",
    "\t",
    "é",
    "e\u0301",
    "日本",
    "🙂",
    "12",
    "|>",
]


def trained(pre_tokenizer: Any, normalizer: Any = None, **token: bool) -> PreTrainedTokenizerFast:
    """Byte pairs that are merged, also over spaces and lines."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>"],
        initial_alphabet=[*pre_tokenizers.ByteLevel.alphabet(), "▁"],
        show_progress=False,
    )
    made.train_from_iterator([" ".join(WORDS), "\n\nthe\n\ncat <| |>", "aé bé\n"] * 5, trainer)
    token = {"special": True, "normalized": False, **token}
    made.add_tokens([AddedToken(text, **token) for text in (OPEN, CLOSE)])
    return PreTrainedTokenizerFast(tokenizer_object=made)


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
KINDS = {
    "bytes": trained(BYTES),
    "bytes with a space": trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "a space before the text": trained(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "a space before all pieces": trained(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "llama": trained(
        pre_tokenizers.Metaspace(prepend_scheme="never"),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.NFC()]),
    ),
    "space after a token": trained(BYTES, rstrip=True),
    "space before a token": trained(BYTES, lstrip=True),
    "normalised": trained(BYTES, normalizers.Lowercase(), normalized=True),
    "single words": trained(BYTES, single_word=True),
    "family": byte_tokenizer((OPEN, CLOSE)),
    "sentencepiece": sentencepiece_tokenizer(),
}
CUT = {"bytes", "bytes with a space", "a space before the text", "a space before all pieces",
       "llama", "space after a token", "family"}  # fmt: skip


def whole(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_which_tokenizers_cut_their_texts(kind: str) -> None:
    assert Pieces(KINDS[kind], [OPEN, CLOSE]).used == (kind in CUT)


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.lists(st.sampled_from([OPEN, CLOSE, *WORDS]), max_size=12))
def test_pieces_have_the_ids_of_the_whole_text(kind: str, parts: list[str]) -> None:
    made = Pieces(KINDS[kind], [OPEN, CLOSE])
    made._count = FIRST_TEXTS  # no text is checked
    text = "".join(parts)
    assert made.ids(text) == whole(KINDS[kind], text)


@given(parts=st.lists(st.sampled_from([OPEN, CLOSE, "<|im_", "start|>", *WORDS]), max_size=12))
def test_text_that_spells_a_token_stays_text(parts: list[str]) -> None:
    tokenizer = KINDS["bytes"]
    made, other = Tokens(tokenizer, template=OPEN + CLOSE), Tokens(tokenizer, template=OPEN + CLOSE)
    other.pieces.used = False
    assert made.pieces.used
    made.pieces._count = FIRST_TEXTS
    text = "".join(parts)
    prompt = f"{OPEN}user\n{made.marked(text)}{CLOSE}\n{OPEN}assistant\n"
    assert made.ids(prompt, special=False) == other.ids(prompt, special=False)


def test_a_token_inside_another_one_is_no_place_to_cut() -> None:
    tokenizer = byte_tokenizer((OPEN, CLOSE), (f"{CLOSE}\n", "a<"))
    made = Pieces(tokenizer, [CLOSE])
    text = f"{OPEN}b{CLOSE}\n{CLOSE}a{OPEN}"
    assert not made.used
    assert made.ids(text) == whole(tokenizer, text)
    assert not Pieces(tokenizer, [OPEN]).used  # `a<` may hold its first letter


def test_a_difference_ends_the_use_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = KINDS["bytes"]
    made = Pieces(tokenizer, [OPEN])
    monkeypatch.setattr(made, "_joined", lambda _: [0])
    assert made.ids(f"{OPEN}a") == whole(tokenizer, f"{OPEN}a")
    assert not made.used


def test_a_piece_is_tokenised_once() -> None:
    made = Pieces(KINDS["bytes"], [OPEN])
    made._count = FIRST_TEXTS
    misses = made._piece.cache_info().misses
    for end in range(1, 4):
        made.ids(f"{OPEN}a new turn" * end)
    assert made._piece.cache_info().misses == misses + 1
