"""Rules that are drafted from the sentences of a prompt."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from instil.bench.conversations import NAMES, Product
from instil.metrics.draft import drafted, sentences
from instil.metrics.rules import rules_of


def rules(prompt: str) -> list[dict[str, Any]]:
    made = yaml.safe_load(drafted(prompt)) or []
    for one in made:
        del one["name"]
    return list(made)


@pytest.mark.parametrize(
    ("sentence", "rule"),
    [
        ('Begin every answer with "Hi there!" and nothing else.', {"starts_with": "Hi there!"}),
        ("Always start your reply with 'Dear guest'.", {"starts_with": "Dear guest"}),
        ('End every answer with "Mia" on a line.', {"ends_with": "Mia"}),
        ("Write at most 40 words.", {"max_words": 40}),
        ("Use no more than twelve words per answer.", {"max_words": 12}),
        ("Write at least 5 words.", {"min_words": 5}),
        ("Answer in no more than two sentences.", {"max_sentences": 2}),
        ("Always answer in English.", {"language": "en"}),
        ("Reply only with valid JSON.", {"json_valid": True}),
        ("Use no links.", {"forbid_regex": r"https?://|www\."}),
    ],
)
def test_a_sentence_of_a_usual_form_is_a_rule(sentence: str, rule: dict[str, Any]) -> None:
    assert rules(sentence) == [rule]


def test_words_that_are_forbidden_are_found_as_words() -> None:
    (made,) = rules_of(yaml.safe_load(drafted('Never use the words "policy" and "as per".')))
    assert made.argument.search("It is our Policy.")
    assert made.argument.search("as per the rule")
    assert not made.argument.search("policyholder")


def test_what_is_no_rule_is_a_comment() -> None:
    text = drafted(
        'You are Mia. If somebody is hurt, begin with "Stop!".\n\n1. Be kind.\n2. Be short.'
    )
    assert yaml.safe_load(text) is None
    for line in (
        "#   You are Mia.",
        '#   If somebody is hurt, begin with "Stop!".  (it has a condition',
        "#   Be kind.",
    ):
        assert line in text
    assert text.startswith("# A draft")


def test_sentences_are_found_in_lists_and_paragraphs() -> None:
    assert sentences("One. Two!\n- Three\n- Four.\n\nFive,\nstill five. It is 3.5 long.") == [
        "One.",
        "Two!",
        "Three",
        "Four.",
        "Five, still five.",
        "It is 3.5 long.",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_drafts_of_the_shipped_prompts_are_rules(name: str) -> None:
    """Examples of the prompt obey most drafted rules; a draft may be wrong."""
    product = Product.read(name)
    made = yaml.safe_load(drafted(product.system))
    if name == "support":
        kinds = {next(key for key in one if key != "name") for one in made}
        assert {"starts_with", "ends_with", "max_words", "forbid_regex"} <= kinds
    if made:
        assert rules_of(made)
