"""How numbers are written."""

from __future__ import annotations

import pytest

from instil.report.numerals import (
    count,
    duration,
    interval,
    listed,
    number,
    p_text,
    points,
    signed,
    whole_percent,
)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.97, "97 %"),
        (0.997, "99 %"),
        (1.0, "100 %"),
        (1.04, "104 %"),
        (0.001, "under 1 %"),
        (0.0, "0 %"),
        (-0.12, "\u221212 %"),
    ],
)
def test_rounding_never_reaches_all_or_nothing(value: float, written: str) -> None:
    assert whole_percent(value).replace("\N{NO-BREAK SPACE}", " ") == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (0.11234, "0.112"),
        (1297.4, "1,297"),
        (-3.14159, "\u22123.14"),
        (3.2e-6, "3.2e\u221206"),
    ],
)
def test_significant_digits(value: float, written: str) -> None:
    assert number(value) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.5, "0.500 s"), (119, "119 s"), (242, "4 min 2 s"), (3700, "1 h 1 min")],
)
def test_durations(seconds: float, written: str) -> None:
    assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == written


def test_nouns_agree() -> None:
    assert count(1, "query", "queries").endswith("query")
    assert count(1345, "query", "queries") == "1,345\N{NO-BREAK SPACE}queries"
    assert points(0.01).endswith("point")
    assert points(-0.05).replace("\N{NO-BREAK SPACE}", " ") == "\u22125.0 points"


def test_what_sentences_hold() -> None:
    said = (signed(0.05), signed(-0.01), interval(0.7, 0.8), p_text(0.0004), p_text(0.25))
    assert [one.replace("\N{NO-BREAK SPACE}", " ") for one in said] == [
        "+5.0 points",
        "\u22121.0 point",
        "70.0\u201380.0 %",
        "p < 0.001",
        "p = 0.25",
    ]
    assert (listed(["a"]), listed(["a", "b", "c"])) == ("a", "a, b and c")
