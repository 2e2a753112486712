"""Labels scored whole, against the textbook way: one forward pass a token, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import byte_tokenizer

from instil.errors import VerbalizerError
from instil.models.branches import branch
from instil.models.forward import completion_logits
from instil.models.load import LanguageModel
from instil.prompts.format import ChatPrompt, PlainPrompt, PromptFormat
from instil.prompts.labels import LabelTokens

Forms = tuple[tuple[tuple[int, ...], ...], ...]

FORMS: dict[str, Forms] = {
    "one token each": (((70,),), ((71,),)),
    "several tokens": (((70, 71, 72),), ((80, 81),)),
    "one and several": (((70,),), ((80, 81, 82),), ((90, 91),)),
    "a shared first token": (((70, 71),), ((70, 72, 73),), ((70, 72, 74),)),
    "several forms": (((70,), (90, 91)), ((80,), (81,), (90, 92, 93))),
    "repeated tokens": (((70, 70, 70),), ((71, 70),)),
}
PROMPTS = [list(b"once"), list(b"a"), list(b"upon a time"), list(b"once upon")]


def choices_of(forms: Forms) -> LabelTokens:
    return LabelTokens(tuple(f"label {n}" for n in range(len(forms))), forms)


@torch.no_grad()
def naive(network: Any, prompt: list[int], forms: Forms) -> list[float]:
    """The sum over forms of the product of their tokens' probabilities."""
    sums = []
    for label in forms:
        total = 0.0
        for ids in label:
            product = 1.0
            for n, token in enumerate(ids):
                read = torch.tensor([[*prompt, *ids[:n]]])
                product *= network(input_ids=read).logits[0, -1].softmax(-1)[token].item()
            total += product
        sums.append(math.log(total))
    return sums


@pytest.mark.parametrize("case", FORMS)
def test_labels_score_the_sum_over_forms_of_the_product_over_tokens(
    any_model: LanguageModel, case: str
) -> None:
    choices = choices_of(FORMS[case])
    batch = branch(PROMPTS, choices.branches, pad_id=any_model.pad_id)
    with torch.no_grad():
        logits_NV = completion_logits(any_model.network, batch)
    got = choices.logprobs(logits_NV.split(3))
    torch.testing.assert_close(choices.logprobs([logits_NV]), got)
    exact = copy.deepcopy(any_model.network).double()
    expected = torch.tensor([naive(exact, prompt, choices.forms) for prompt in PROMPTS])
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("case", "paths", "positions"),
    [
        ("one token each", [()], 1),
        ("several tokens", [(70, 71), (80,)], 4),
        ("one and several", [(80, 81), (90,)], 4),
        ("a shared first token", [(70, 72)], 3),
        ("several forms", [(90, 92)], 3),
        ("repeated tokens", [(70, 70), (71,)], 4),
    ],
)
def test_paths_by_hand(case: str, paths: list[tuple[int, ...]], positions: int) -> None:
    choices = choices_of(FORMS[case])
    assert list(choices.branches.paths) == paths
    assert choices.positions == positions


A_FORM = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
SOME_FORMS = st.lists(
    st.lists(A_FORM, min_size=1, max_size=3, unique=True).map(tuple), min_size=1, max_size=4
).map(tuple)


def made_up_logits(read: Sequence[int]) -> torch.Tensor:
    """A language model of four tokens that remembers all that it has read."""
    seed = int("".join(str(token + 1) for token in read) or "0")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, generator=generator, dtype=torch.float64)


@given(SOME_FORMS, st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=3))
def test_every_token_is_read_where_it_is_predicted(forms: Forms, prompts: list[list[int]]) -> None:
    choices = choices_of(forms)
    logits = torch.stack(
        [made_up_logits([*prompt, *node]) for prompt in prompts for node in choices.branches.nodes]
    )

    def logprob(prompt: list[int], ids: tuple[int, ...]) -> float:
        steps = range(len(ids))
        read = [made_up_logits([*prompt, *ids[:n]]).log_softmax(-1)[ids[n]] for n in steps]
        return float(sum(read))

    expected = [
        [math.log(sum(math.exp(logprob(prompt, ids)) for ids in label)) for label in forms]
        for prompt in prompts
    ]
    torch.testing.assert_close(choices.logprobs([logits]), torch.tensor(expected).double())


def plain() -> PlainPrompt:
    return PlainPrompt(byte_tokenizer(), pattern="{input}", completion=" {output}\n", separator="")


def chat() -> ChatPrompt:
    return ChatPrompt(byte_tokenizer(), template_kwargs={})


def cut(verbalizer: Mapping[str, Sequence[str]], form: PromptFormat) -> list[list[str]]:
    choices = LabelTokens.of(verbalizer, form, "any query")
    return [[form.tokenizer.decode(list(ids)) for ids in forms] for forms in choices.forms]


def test_forms_are_cut_as_they_follow_a_prompt() -> None:
    verbalizer = {"yes": ("Yes", "sure"), "no": ("No",)}
    assert cut(verbalizer, plain()) == [[" Yes", " sure"], [" No"]]
    assert cut(verbalizer, chat()) == [["Yes", "sure"], ["No"]]
    assert LabelTokens.of(verbalizer, plain(), "q").labels == ("yes", "no")


def test_a_longer_form_of_the_same_label_adds_nothing() -> None:
    with_longer = LabelTokens.of({"a": ("no", "nope", "none"), "b": ("yes",)}, plain(), "q")
    assert with_longer == LabelTokens.of({"a": ("no",), "b": ("yes",)}, plain(), "q")
    assert cut({"a": ("nope", "no", "never"), "b": ("yes",)}, plain())[0] == [" no", " never"]


def test_several_forms_add_up() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]]).log()
    got = choices_of((((0,), (2,)), ((3,),))).logprobs([logits]).exp()
    torch.testing.assert_close(got, torch.tensor([[0.4, 0.4], [0.8, 0.1]]))


@pytest.mark.parametrize(
    ("verbalizer", "form", "how"),
    [
        (
            {"a": ["no"], "b": ["not"]},
            plain(),
            "the tokens of 'no' are the beginning of those of 'not'",
        ),
        (
            {"a": ["not"], "b": ["yes", "no"]},
            plain(),
            "the tokens of 'no' are the beginning of those of 'not'",
        ),
        ({"a": ["no"], "b": ["no "]}, chat(), "the tokens of 'no' are the same as those of 'no '"),
    ],
    ids=["begins", "begins, the other way round", "equals"],
)
def test_labels_that_tokens_cannot_tell_apart_are_refused(
    verbalizer: dict[str, list[str]], form: PromptFormat, how: str
) -> None:
    with pytest.raises(VerbalizerError) as caught:
        LabelTokens.of(verbalizer, form, "q")
    assert how in str(caught.value)
    assert "'a'" in str(caught.value)
    assert "'b'" in str(caught.value)
