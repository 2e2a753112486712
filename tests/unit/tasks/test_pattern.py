from __future__ import annotations

from decimal import Decimal

import pytest
from pydantic import TypeAdapter, ValidationError

from instil.errors import DataFormatError, FieldError
from instil.tasks.pattern import Pattern, render

PATTERN = TypeAdapter(Pattern)


def test_fields_are_written_in_and_double_braces_are_braces() -> None:
    assert render("{{{a}}} {b c}{a}", {"a": "x", "b c": 2, "other": None}, "row 1") == "{x} 2x"


def test_numbers_are_written_as_they_are() -> None:
    assert render("{a}", {"a": 1.5}, "row 1") == "1.5"
    assert render("{a}", {"a": Decimal("1.50")}, "row 1") == "1.50"
    assert render("{a}", {"a": Decimal("1" * 5000)}, "row 1") == "1" * 5000
    assert render("{a} {b}", {"a": "nan", "b": "null"}, "row 1") == "nan null"


def test_braces_in_a_value_stay_as_they_are() -> None:
    assert render("{a}", {"a": "{b} {0.__class__}", "b": "no"}, "row 1") == "{b} {0.__class__}"


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("no field", "at least one field"),
        ("{{text}}", "at least one field"),
        ("{}", "not the name of a field"),
        ("{text.__class__}", "not the name of a field"),
        ("{text[0]}", "not the name of a field"),
        ("{text!r}", "only the name is allowed, as in {text}"),
        ("{text:>9}", "only the name is allowed, as in {text}"),
        ("{text", "for a plain brace"),
        ("text}", "for a plain brace"),
    ],
)
def test_anything_but_plain_names_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PATTERN.validate_python(pattern)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"txet": "a"}, "file, line 3: there is no field 'text'.*did you mean 'txet'"),
        ({"a": "b", "c": "d"}, "known: 'a', 'c'"),
        ({"text": None}, "line 3: the field 'text' is null: its value is missing"),
        ({"text": float("nan")}, "line 3: the field 'text' is NaN: its value is missing"),
        ({"text": float("inf")}, "the field 'text' is infinite; got: inf"),
        ({"text": True}, "neither text nor a number; got: bool True"),
        ({"text": ["a"]}, "got: list"),
        ({"text": " \n"}, "the fields of the pattern are empty"),
    ],
)
def test_a_row_that_does_not_fill_the_pattern_is_refused(
    fields: dict[str, object], words: str
) -> None:
    with pytest.raises(FieldError, match=words):
        render("Text: {text}", fields, "file, line 3")


def test_one_blank_field_among_others_and_outer_spaces_are_left_alone() -> None:
    assert render("{a}|{b}", {"a": "", "b": " x "}, "row 1") == "| x "


def test_half_a_character_is_refused() -> None:
    with pytest.raises(DataFormatError, match="row 7 contains half a character"):
        render("{a}", {"a": "\ud83d"}, "row 7")
