"""YAML as a person means it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from instil.recipe.text import read_setting, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_000", 1000),
        ("0", 0),
        ("0x10", 16),
        ("08", "08"),
        ("0.5", 0.5),
        ("01.5", 1.5),
        ("1e-3", "1e-3"),
        ("2020-01-01", "2020-01-01"),
        ("2020-13-45", "2020-13-45"),
        ("2024-07-26 10:00:00", "2024-07-26 10:00:00"),
        ("'010'", "010"),
        ("'1:30'", "1:30"),
        ("yes", True),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
        ("[&a x, *a]", ["x", "x"]),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert read_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("010", "010 is a number with another base"),
        ("-017", "-017 is a number with another base"),
        ("{a: [1, 1:30]}", "1:30 is a number with another base"),
        ("1:30.5", "another base"),
        ("{a: 1, a: 2}", "the key a occurs twice"),
        ("!!int abc", "'abc' is no value of type int"),
        ("!!bool abc", "'abc' is no value of type bool"),
        ("!!float abc", "'abc' is no value of type float"),
        ("!!timestamp abc", "'abc' is no value of type timestamp"),
        ("9" * 5000, r"'9{40}' is no value of type int"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("!!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("? [a]\n: 1", "unhashable key"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    with pytest.raises(yaml.YAMLError, match=told):
        read_yaml(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=b", "a=b"),
        ("C:\\new\\table", "C:\\new\\table"),
        (r"\n", r"\n"),
        (r'"\n"', "\n"),
        ("' x '", " x "),
        ('"a # b"', "a # b"),
        ("!!str 3", "3"),
        ("3 # three", 3),
        (" 3", 3),
        ("", None),
        ("é", "é"),
    ],
)
def test_a_setting_is_what_was_typed(text: str, value: Any) -> None:
    assert read_setting(text) == value


@pytest.mark.parametrize("text", [" x", "x ", "a # b", "|", ">", "a\n\nb", "|\n a"])
def test_a_setting_that_yaml_would_change_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="to keep it as it is, put it in quotation marks") as e:
        read_setting(text)
    quoted = str(e.value).partition("quotation marks: ")[2]
    assert read_setting(quoted) == text
