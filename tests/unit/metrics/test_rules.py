"""Rules: what an answer must obey, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from instil.bench.conversations import NAMES, Product
from instil.errors import ConfigError, DataFileError, DataFormatError
from instil.metrics.rules import Asked, read_rules, rules_of


def verdict(rule: dict[str, Any], written: str, *, query: str = "", turn: int = 1) -> bool | None:
    (made,) = rules_of([rule])
    return made.kept(written, Asked(query, f"earlier HO-1\n\n{query}", turn))


@pytest.mark.parametrize(
    ("rule", "written", "query", "turn", "kept"),
    [
        ({"starts_with": "Hi there!"}, "Hi there! You", "", 1, True),
        ({"starts_with": "Hi there!"}, "Hello", "", 1, False),
        ({"forbid_regex": "!.*!"}, "Oh! No!", "", 1, False),
        ({"must_regex": "parcel"}, "a parcel", "", 1, True),
        (
            {"max_words": 2, "when": {"query_regex": "(?i)FIRE"}},
            "one two three",
            "a fire",
            1,
            False,
        ),
        ({"max_words": 2, "when": {"query_regex": "fire"}}, "one two three", "a hole", 1, None),
        ({"max_words": 2, "when": {"query_not_regex": "fire"}}, "one two three", "hole", 1, False),
        ({"max_words": 2, "when": {"query_not_regex": "fire"}}, "one two three", "fire", 1, None),
        ({"max_words": 2, "when": {"chat_regex": "HO-1"}}, "one two three", "fire", 1, False),
        ({"max_words": 2, "when": {"chat_not_regex": "HO-1"}}, "one two three", "", 1, None),
        ({"max_words": 2, "when": {"turn": "first"}}, "one two three", "", 2, None),
        ({"max_words": 2, "when": {"turn": "later"}}, "one two three", "", 2, False),
        ({"max_words": 2, "when": {"turn": "later"}}, "one two three", "", 1, None),
        ({"max_words": 2, "when": {"turn": 3}}, "one two", "", 3, True),
        ({"refuse_when": {"query_regex": "poem"}}, "I cannot help with that.", "a poem", 1, True),
        ({"refuse_when": {"query_regex": "poem"}}, "The sea is wide.", "a poem", 1, False),
        ({"refuse_when": {"query_regex": "poem"}}, "The sea is wide.", "a lamp", 1, None),
        (
            {"calls_tool_when": {"query_regex": "book", "tool": "book"}},
            '{"name": "book", "arguments": {}}',
            "book a room",
            1,
            True,
        ),
        ({"calls_tool_when": {"query_regex": "book"}}, "No.", "book a room", 1, False),
    ],
)
def test_a_rule_is_kept_where_it_applies(
    rule: dict[str, Any], written: str, query: str, turn: int, kept: bool | None
) -> None:
    assert verdict(rule, written, query=query, turn=turn) is kept


def test_a_rule_without_a_name_is_called_by_what_it_says() -> None:
    made = rules_of([{"max_words": 60}, {"name": 7, "min_words": 2, "when": {"turn": 1}}])
    assert [rule.name for rule in made] == ["max_words: 60", "7"]
    assert made[1].text == "{min_words: 2, when: {turn: 1}}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "a list of rules is expected"),
        ("max_words: 3", "a list of rules is expected"),
        (["max_words"], "rule 1: a rule has keys"),
        ([{"name": "short"}], "rule 1: a rule has one metric.*got: no metric"),
        ([{"max_words": 3, "min_words": 1}], "one metric.*got: max_words, min_words"),
        ([{"max_word": 3}], "rule 1: there is no metric 'max_word'.*did you mean 'max_words'"),
        ([{"name": "short", "max_words": "ten"}], r"rule 1 \(short\): max_words: a whole number"),
        ([{"must_regex": "("}], "no regular expression"),
        ([{"max_words": 3, "when": {"query": "a"}}], "no condition 'query'.*'query_regex'"),
        ([{"max_words": 3, "when": {}}], "when has keys"),
        ([{"max_words": 3, "when": {"query_regex": "["}}], "query_regex: this is no regular"),
        ([{"max_words": 3, "when": {"turn": 0}}], "turn; got: 0; allowed: first, later"),
        ([{"refuse_when": {"query_regex": "a"}, "when": {"turn": 1}}], "is a condition itself"),
        ([{"max_words": 3}, {"max_words": 3}], "rule 2: another rule has the name"),
    ],
)
def test_a_wrong_rule_is_named(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rules_of(given)


def test_a_metric_that_gives_a_number_is_no_rule() -> None:
    with pytest.raises(ConfigError, match="the rule 'near': the metric 'token_f1' gives a number"):
        verdict({"name": "near", "token_f1": "a b"}, "a c")


def test_rules_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"rules": [{"name": "short", "max_words": 3}]}))
    assert [rule.name for rule in read_rules(path)] == ["short"]
    path.write_text("- {name: [")
    with pytest.raises(DataFormatError, match=r"rules\.yaml: this is no YAML"):
        read_rules(path)
    with pytest.raises(DataFileError, match=r"none\.yaml: the rules cannot be read"):
        read_rules(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_prompts_keep_their_own_rules_in_their_examples(name: str) -> None:
    """Each example turn obeys every rule, and each rule applies to some example."""
    product = Product.read(name)
    rules = rules_of(product.rules, name)
    assert 10 <= len(rules) <= 25
    assert len(product.examples) >= 16
    broken, applied = [], set()
    for asked, answer in zip(product.examples[::2], product.examples[1::2], strict=True):
        for rule in rules:
            kept = rule.kept(answer.content, Asked(asked.content, asked.content))
            applied |= {rule.name} if kept is not None else set()
            if kept is False:
                broken.append((rule.name, asked.content, answer.content))
    assert broken == []
    assert applied == {rule.name for rule in rules}
