"""The prompts and users of the benchmark."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from instil.bench.conversations import NAMES, Product
from instil.tasks.conversation import Message

KNOWN = {
    *("name", "when", "starts_with", "ends_with", "max_words", "forbid_regex", "must_regex"),
    "json_valid",
}


@pytest.fixture(params=NAMES)
def product(request: pytest.FixtureRequest) -> Product:
    return Product.read(request.param)


def obeys(rule: dict[str, Any], query: str, answer: str) -> bool:
    """Whether an answer obeys a rule, or the rule does not apply."""
    when = rule.get("when", {})
    if "query_regex" in when and not re.search(when["query_regex"], query):
        return True
    if "query_not_regex" in when and re.search(when["query_not_regex"], query):
        return True
    if rule.get("json_valid"):
        json.loads(answer)
    return (
        answer.startswith(rule.get("starts_with", ""))
        and answer.endswith(rule.get("ends_with", ""))
        and len(answer.split()) <= rule.get("max_words", 1000)
        and not ("forbid_regex" in rule and re.search(rule["forbid_regex"], answer, re.DOTALL))
        and ("must_regex" not in rule or bool(re.search(rule["must_regex"], answer)))
    )


def test_each_example_obeys_each_rule(product: Product) -> None:
    assert 10 <= len(product.rules) <= 25
    assert len(product.examples) >= 16
    shots = zip(product.examples[::2], product.examples[1::2], strict=True)
    broken = [
        (rule["name"], asked.content, said.content)
        for asked, said in shots
        for rule in product.rules
        if not obeys(rule, asked.content, said.content)
    ]
    assert broken == []
    assert {key for rule in product.rules for key in rule} <= KNOWN


def test_the_same_seed_gives_the_same_users(product: Product) -> None:
    learn, held_out = product.users(60, "learn"), product.users(40, "held_out")
    assert product.users(60, "learn") == learn
    assert product.users(30, "learn") == learn[:30]
    assert len({tuple(said) for said in learn}) == 60
    assert {len(said) for said in product.users(300, "learn")} == set(range(1, 9))
    assert not {tuple(said) for said in learn} & {tuple(said) for said in held_out}
    assert not any(
        "{" in text and "}" in text and "ok" not in text for said in learn for text in said
    )


def test_the_held_out_users_are_made_of_parts_of_their_own(product: Product) -> None:
    for kind in ("openings", "follow_ups", "foreign", "attacks"):
        assert not set(product.parts[kind]["learn"]) & set(product.parts[kind]["held_out"])
    for name, slot in product.parts["slots"].items():
        if isinstance(slot["learn"], list):
            assert not set(slot["learn"]) & set(slot["held_out"]), name
        for kind in ("openings", "follow_ups", "foreign", "attacks"):
            for split in ("learn", "held_out"):
                for template in product.parts[kind][split]:
                    assert set(re.findall(r"\{(\w+)\}", template)) <= {*product.parts["slots"]}


def test_the_prompt_stands_at_the_head(product: Product) -> None:
    system, *examples = product.head
    assert system == Message("system", product.system)
    assert [one.role for one in examples[:2]] == ["user", "assistant"]
    assert 500 < len(product.system.split()) < 1500
