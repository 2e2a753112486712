from __future__ import annotations

import time
from decimal import Decimal

import pytest

from instil.metrics.numbers import final_number, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        # The mark, first of all.
        ("48/2 = 24 clips.\n#### 72", "72"),
        ("#### 72\nQuestion: Five more?\n#### 77", "72"),
        ("####\n#### none\n#### 72", "72"),
        ("The answer is 5.\n#### 6\nSo 7.", "6"),
        ("#### 1. Add the eggs\n3 + 4 = 7\n#### 2. Tell it\n#### 7", "7"),
        ("#### 1) Add the eggs\n#### 18", "18"),
        ("#### 1. Add the eggs\nThe answer is 20.", "20"),
        ("#### 18. She earns it.\nQuestion: what is 3+4?\n#### 7", "18"),
        ("#### 9*2=18", "18"),
        ("#### 9 * 2 = $18 a day", "18"),
        ("#### 18 = 9 * 2", "18"),
        ("#### 12 apples + 3 apples = 15", "15"),
        ("#### 60 minutes - 10 minutes = 50 minutes", "50"),
        ("#### 5 hours * 60 = 300", "300"),
        ("#### 10%*50=5", "5"),
        ("#### 20 + 30 = 50 + 10 = 60", "60"),
        ("#### (20 + 30) x 2 = $1,000.50", "1000.50"),
        ("#### 5 x 3 = 15 apples left", "15"),
        ("#### 18 dollars. Check: 20 - 3 = 17", "18"),
        ("#### 18 dollars because 20 - 2 = 18.5", "18"),
        ("#### 1. Eggs - 5 + 3 = 8\nThen more.\n#### 7", "7"),
        ("#### 12 + 3\nso = 15", "12"),
        ("#### 48-24", "48"),
        ("#### 18. She makes 18 dollars for 5 days\n", "18"),
        ("#### 1,234. Then she rests", "1234"),
        ("The answer is 1,00,000 rupees.", "100000"),
        ("#### 12,34,567.50", "1234567.50"),
        ("#### 1,00,000*2=2,00,000", "200000"),
        ("#### 1,2,345", "1"),
        ("#### 2.5. Then she rests", "2.5"),
        ("##### 5\nthen 6", "6"),
        ("### 5\nthen 6", "6"),
        ("####72", "72"),
        ("#### 42.", "42"),
        ("#### **42**", "42"),
        (r"#### $\boxed{42}$", "42"),
        # A mark without a number.
        ("3 + 4 = 7\n####", "7"),
        ("3 + 4 = 7\n#### done", "7"),
        # The box.
        (r"\boxed{3}, and then \boxed{42}. That took 2 steps.", "42"),
        (r"\boxed{\$1{,}234}", "1234"),
        (r"\boxed{18\text{ dollars}}", "18"),
        (r"\boxed{\text{18 dollars}}", "18"),
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{2\frac{1}{2}}", "2.5"),
        (r"1 \dfrac{1}{2} cups", "1.5"),
        (r"\boxed{\frac12}", "0.5"),
        (r"The answer is \(5\), that is \boxed{6}", "6"),
        # The sentence.
        ("5 + 4 = 9. The answer is 9.\n\nQ: And then?\nA: The answer is 3.", "9"),
        ("The answer is $1,234.50.", "1234.50"),
        ("The answer is 9 * 2 = 18.", "18"),
        ("**The final answer is: $\\boxed{72}$**", "72"),
        ("the ANSWER is **18** dollars, not 20", "18"),
        # The last number.
        ("First 3, then 4.", "4"),
        ("<<48/2=24>>24", "24"),
        ("so she has $<<9*2=18>>18 left", "18"),
        ("He pays $18", "18"),
        ("He pays 18 dollars.", "18"),
        ("US$18 each", "18"),
        ("Rs.50", "50"),
        ("about 25%", "25"),
        (r"25\%", "25"),
        ("3kg", "3"),
        ("x = .75", "0.75"),
        ("3.50", "3.5"),
        ("007", "7"),
        # Thousands.
        ("1,234", "1234"),
        ("1,234,567.5 in all", "1234567.5"),
        ("1\u00a0234", "1234"),
        ("1\u202f234", "1234"),
        (r"1\,234", "1234"),
        ("1 234", "234"),
        ("1,23", "23"),
        ("in 2019, 15 more", "15"),
        # Signs.
        ("-7", "-7"),
        ("\u22127", "-7"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### - 5", "-5"),
        ("#### \u2013 7", "-7"),
        ("#### \u20137", "-7"),
        ("48-24", "24"),
        ("48 - 24", "24"),
        ("10-12", "12"),
        ("COVID-19", "19"),
        ("(3)-2", "2"),
        # Fractions.
        ("1/2", "0.5"),
        ("#### 84/2", "42"),
        ("2 1/2 cups", "2.5"),
        ("-1/2", "-0.5"),
        ("1.5/2", "0.75"),
        ("1,200/2", "600"),
        ("5/10/2020 and 3", "3"),
        # What is no answer.
        ("", None),
        ("####", None),
        ("no idea", None),
        ("\\boxed{}", None),
        ("1/0", None),
        # Thinking aloud is none.
        ("<think>The answer is 3? No.</think>It is 4.", "4"),
        ("<think>3, or was it 4", "4"),
    ],
)
def test_the_final_number_of_a_text(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 3", "3"), (r"\boxed{3}", "3"), ("The answer is 3.", "3"), ("It is 3.", None)],
)
def test_a_number_that_is_not_marked_counts_only_if_that_is_allowed(
    text: str, number: str | None
) -> None:
    found = final_number(text, flexible=False)
    assert found == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("text", "gold", "same"),
    [
        ("It costs $3.50", "#### 3.5", True),
        ("1,234", "#### 1234", True),
        ("#### 1234", "so 1,200 + 34 = 1,234\n#### 1,234", True),
        ("-0", "#### 0", True),
        ("0.1", "#### 0.1000000000000000055511151231257827", False),  # equal as floats
        ("9007199254740993", "#### 9007199254740992", False),  # equal as floats
        ("1/3", "#### 1", False),
        ("none", "#### 0", False),
        ("", "no number", False),
        ("9" * 5000, "#### 9", False),
        ("9" * 5000, "#### " + "9" * 5000, True),
    ],
)
def test_numbers_are_compared_exactly(text: str, gold: str, *, same: bool) -> None:
    assert same_number(text, gold) is same


def test_the_rule_for_answers_does_not_hold_for_gold() -> None:
    assert same_number("#### 3", "3", flexible=False)
    assert not same_number("3", "#### 3", flexible=False)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 50_000,
        "1 " * 30_000,
        "#### " * 20_000,
        "#### 1. a\n" * 10_000,
        "\\boxed{" * 20_000,
        "answer is " + "(" * 50_000,
        "#### " + "1 a b c + " * 10_000,
        "#### 1 + 1 = " * 10_000,
        "#### 1 a a a" * 10_000,
    ],
)
def test_a_text_that_runs_on_takes_no_time(text: str) -> None:
    began = time.process_time()
    final_number(text)
    assert time.process_time() - began < 2
