"""The metrics, one by one, and their registry."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instil.errors import ConfigError
from instil.metrics import METRICS, comparing, find, metric, registry

CALL = '<tool_call>\n{"name": "book", "arguments": {"room": 4, "day": "Monday"}}\n</tool_call>'
SAME_CALL = 'Sure. {"name": "book", "parameters": "{\\"day\\": \\"Monday\\", \\"room\\": 4.0}"}'

CASES: list[tuple[str, str, Any, float]] = [
    ("exact", " Paris\n", "Paris", True),
    ("exact", "paris", "Paris", False),
    ("exact", "Caf\u00e9", "Cafe\u0301", True),
    ("exact", "10²", "102", False),
    ("normalised", "  paris!", "Paris", True),
    ("normalised", "STRASSE", "straße", True),
    ("normalised", "a-b", "a b", True),
    ("normalised", "ab", "a b", False),
    ("normalised", "?", "!", False),
    ("normalised", "?", "?", True),
    ("contains", "It is PARIS.", "paris", True),
    ("contains", "It is Rome.", "paris", False),
    ("contains", "red and blue", ["Blue", "red"], True),
    ("contains", "red", ["blue", "red"], False),
    ("contains_none", "red", ["blue", "green"], True),
    ("contains_none", "Green", ["blue", "green"], False),
    ("starts_with", "\n Hi there! You", "Hi there!", True),
    ("starts_with", "Oh, Hi there!", "Hi there!", False),
    ("ends_with", "Bye.\nMia \n", "Mia", True),
    ("ends_with", "Mia says bye", "Mia", False),
    ("regex", "order HO-1234", r"HO-\d+", True),
    ("regex", "order 1234", r"HO-\d+", False),
    ("number", "so it is 6\n#### 6", "#### 6.0", True),
    ("number", "#### 7", "#### 6", False),
    ("choice", "The answer is (B).", "B", True),
    ("choice", "B) because it fits", "B", True),
    ("choice", "A. It is", "B", False),
    ("choice", "I think that A is wrong. The answer is B", "B", True),
    ("choice", "positive", "Positive.", True),
    ("choice", "Order.", ["order", "cancel"], True),
    ("choice", "refund", ["order", "cancel"], False),
    ("json_valid", '{"a": 1}', "", True),
    ("json_valid", '```json\n{"a": 1}\n```', "", True),
    ("json_valid", '{"a": NaN}', "", False),
    ("json_valid", 'Here: {"a": 1}', "", False),
    ("json_equal", '{"b": [1, 2.0], "a": null}', '{"a": null, "b": [1.0, 2]}', True),
    ("json_equal", '{"a": [2, 1]}', '{"a": [1, 2]}', False),
    ("json_equal", '{"a": true}', '{"a": 1}', False),
    ("json_equal", '{"a": "1"}', '{"a": 1}', False),
    ("json_equal", "{", "{}", False),
    ("json_fields", '{"a": 1, "b": 2}', '{"a": 1, "b": 2}', 1.0),
    ("json_fields", '{"a": 1, "b": 3}', '{"a": 1, "b": 2}', 0.5),
    ("json_fields", '{"a": 1}', '{"a": 1, "b": 2}', 2 / 3),
    ("json_fields", '{"a": {"b": [1, 2]}}', '{"a": {"b": [2, 1]}}', 1.0),
    ("json_fields", '{"a": {"c": 1}}', '{"a": {"b": 1}}', 0.0),
    ("json_fields", "a is 1", '{"a": 1}', 0.0),
    ("json_fields", "{}", "{}", 1.0),
    ("tool_call", CALL, SAME_CALL, True),
    ("tool_call", CALL.replace("4", "5"), SAME_CALL, False),
    ("tool_call", CALL.replace("book", "cancel"), SAME_CALL, False),
    ("tool_call", CALL + CALL, SAME_CALL, False),
    ("tool_call", "No call.", "None here either", True),
    ("tool_call", CALL, "None here", False),
    ("calls_tool", CALL, "book", True),
    ("calls_tool", CALL, "cancel", False),
    ("calls_tool", "{not json} " + CALL, True, True),
    ("calls_tool", "Nothing.", True, False),
    ("token_f1", "the red house", "The red house!", 1.0),
    ("token_f1", "red house", "the red house", 0.8),
    ("token_f1", "blue", "red", 0.0),
    ("rouge_l", "the cat sat", "the cat sat", 1.0),
    ("rouge_l", "the cat sat on", "the mat sat", 4 / 7),
    ("rouge_l", "größe zählt", "Größe zählt", 1.0),
    ("rouge_l", "日本", "日本", 1.0),
    ("rouge_l", "", "!", 1.0),
    ("chrf", "same", "same", 1.0),
    ("chrf", "abc", "xyz", 0.0),
    ("max_words", "one two three", 3, True),
    ("max_words", "one two three four", 3, False),
    ("min_words", "one two", 3, False),
    ("max_sentences", "One. Two! Three?", 3, True),
    ("max_sentences", "One. Two! Three?", 2, False),
    ("max_sentences", "It costs 3.50 at www.shop.org.", 1, True),
    ("language", "This is a sentence in English, as you see.", "en", True),
    ("language", "Das ist ein Satz in deutscher Sprache.", "en", False),
    ("language", "Das ist ein Satz in deutscher Sprache.", "de", True),
    ("language", "OK", "fr", True),
    ("refuse", "I'm sorry, but I can't help with that.", True, True),
    ("refuse", "I cannot help with poems.", True, True),
    ("refuse", "I can only help with Hollow Oak.", True, True),
    ("refuse", "I am sorry about the hole in your rug.", True, False),
    ("refuse", "I don't know the number, but the team can help.", True, False),
]


def read(name: str, argument: Any) -> Any:
    """The argument as a rule reads it, where it is no gold answer."""
    found = METRICS[name]
    return argument if found.compares or found.reads is None else found.reads(argument)


@pytest.mark.parametrize(("name", "written", "expected", "value"), CASES)
def test_a_metric_judges_an_answer(name: str, written: str, expected: Any, value: float) -> None:
    found = METRICS[name].value(written, read(name, expected))
    assert found == pytest.approx(value)
    assert isinstance(found, bool) == isinstance(value, bool)


def test_every_metric_has_a_case() -> None:
    judged = {name for name, *_ in CASES} | {"must_regex", "forbid_regex", "json_schema"}
    assert judged == set(METRICS)


def test_a_better_translation_has_a_higher_chrf() -> None:
    gold = "The parcel arrives soon."
    near, far = (METRICS["chrf"].value(t, gold) for t in ("The parcel arrived soon.", "It rains."))
    assert 0 < far < 0.3 < near < 1


def test_a_schema_is_what_json_must_fit() -> None:
    schema = read("json_schema", {"type": "object", "required": ["a"]})
    assert METRICS["json_schema"].value('{"a": 1}', schema) is True
    assert METRICS["json_schema"].value('{"b": 1}', schema) is False
    assert METRICS["json_schema"].value("none", schema) is False


def test_a_gold_output_that_is_no_pattern_is_an_error() -> None:
    with pytest.raises(ConfigError, match="gold outputs that are regular expressions"):
        METRICS["regex"].value("a", "(")


def test_a_metric_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "METRICS", dict(METRICS))

    @metric("same_length")
    def same_length(written: str, gold: str) -> bool:
        return len(written) == len(gold)

    assert find("same_length").value("ab", "cd") is True
    assert metric("same_length")(same_length) is same_length
    with pytest.raises(ValueError, match="already a metric 'same_length'"):
        metric("same_length")(len)


def test_a_function_is_found_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text(
        "def half(written, gold):\n    return 0.5\n"
        "def broken(written, gold):\n    return 1 / 0\n"
        "def wordy(written, gold):\n    return 'much'\n"
        "def large(written, gold):\n    return 7\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert comparing("python:own_metrics.half").value("a", "b") == 0.5
    assert find("python:own_metrics:half").value("a", "b") == 0.5
    with pytest.raises(ConfigError, match=r"fails on row 3; got: ZeroDivisionError"):
        find("python:own_metrics.broken").value("a", "b", where="row 3")
    for name in ("wordy", "large"):
        with pytest.raises(ConfigError, match="a number from 0 to 1"):
            find(f"python:own_metrics.{name}").value("a", "b")
    with pytest.raises(ConfigError, match="is no function; got: int"):
        find("python:own_metrics.number")
    for name in ("python:own_metrics.none", "python:nowhere.none", "python:none"):
        with pytest.raises(ConfigError, match="cannot be imported"):
            find(name)
    sys.modules.pop("own_metrics")


def test_an_entry_point_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="shouted", load=lambda: lambda written, gold: written.isupper())
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert find("shouted").value("HELLO", "") is True
    with pytest.raises(ConfigError, match="did you mean 'shouted'"):
        find("shout")


def test_a_metric_for_rules_compares_with_nothing() -> None:
    with pytest.raises(ConfigError, match="'max_words' compares with no gold answer"):
        comparing("max_words")


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("starts_with", ""),
        ("contains", []),
        ("contains", [3]),
        ("max_words", "3"),
        ("max_words", -1),
        ("max_words", True),
        ("must_regex", "("),
        ("must_regex", 3),
        ("json_schema", "object"),
        ("json_schema", {"type": "objekt"}),
        ("json_valid", False),
        ("language", "English"),
        ("calls_tool", ""),
    ],
)
def test_a_wrong_argument_is_refused(name: str, argument: Any) -> None:
    reads = METRICS[name].reads
    assert reads is not None
    with pytest.raises(ValueError, match=r"expected|regular expression|JSON Schema"):
        reads(argument)


def test_json_fields_may_ask_for_a_schema(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    path = tmp_path / "form.json"
    path.write_text(
        '{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}'
    )
    judge = comparing(f"json_fields:{path}")
    assert judge.name == f"json_fields:{path}"
    gold = '{"a": 1, "b": 2}'
    assert judge.value('{"a": 1, "b": 3}', gold) == 0.5
    assert judge.value('{"a": "1", "b": 2}', gold) == 0.0
    assert judge.value('{"b": 2}', gold) == 0.0
    path.write_text('{"type": 3}')
    with pytest.raises(ConfigError, match=r"json_fields:.* cannot be read"):
        comparing(f"json_fields:{path}")
    with pytest.raises(ConfigError, match=r"json_fields:none.json.*No such file"):
        comparing("json_fields:none.json")
    with pytest.raises(ConfigError, match="'exact' takes nothing after its name"):
        comparing("exact:form.json")
