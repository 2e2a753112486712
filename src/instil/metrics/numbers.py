r"""Finds the final number of a free-text answer, and compares it with the gold answer's.

The rules are tried in this order, and the first rule that finds a number decides:

1. `#### N`, the mark in the answers of GSM8K (Cobbe et al. 2021, arXiv:2110.14168). If there are
   several, the first is used, because a model that does not stop invents and answers another
   question. Marks without a number are ignored. So are headings that count from 1:
   `#### 1. Add the eggs`.
2. `\boxed{N}`, the mark of chat models. If there are several, the last is used, because these
   models also box intermediate results (the rule of Hendrycks et al. 2021, arXiv:2103.03874).
3. `the answer is N`, the end of the demonstrations of Wei et al. 2022 (arXiv:2201.11903). If there
   are several, the first is used, as in 1.
4. The last number of the text. It is not marked as the answer, so this rule can be switched off.

Numbers are exact decimals: `3.50` is `3.5`. Currency signs, units, `%` and emphasis around a number
are ignored: `25%` is 25. The result of a marked calculation is used: `#### 9 eggs * 2 = 18 eggs` is
18. A comma or a no-break space groups thousands, also as in `12,34,567`; a normal space separates
two numbers. `1/2` is one number, the quotient, and `2 1/2` is one number too. Number words
(`million`) and powers of ten are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal

# Other ways (mostly TeX) to write what the patterns below recognise.
_REWRITTEN = (
    (re.compile("[\u2212\uff0d\u2013]"), "-"),
    (re.compile("(?<=[0-9])(?:\\{,\\}|\\\\,|,\\\\!|[\u00a0\u2009\u202f])(?=[0-9]{3})"), ","),
    (re.compile(r"(?<=[0-9])\s*(?=\\[dt]?frac)"), " "),
    (re.compile(r"\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}"), r"\1/\2"),
    (re.compile(r"\\[dt]?frac([0-9])([0-9])"), r"\1/\2"),
    (re.compile(r"\\(?=[$%])"), ""),
    (re.compile(r"\\text(?:bf)?(?=\{)"), ""),
)
# Thousands are grouped as in 1,234,567 or, in India, as in 12,34,567.
_INTEGER = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])|[0-9]+"
_NUMBER = (
    r"(?P<minus>(?<![\w)\]}%])-[$£€¥]?)?"  # not the minus sign in 48-24
    rf"(?:(?:(?P<mixed>{_INTEGER})[ ])?(?<![0-9]/)(?P<over>(?:{_INTEGER})(?:\.[0-9]+)?)/(?P<under>[0-9]+)(?![./]?[0-9])"
    rf"|(?P<integer>{_INTEGER})(?P<part>\.[0-9]+)?"
    r"|(?<![\w.])(?P<bare>\.[0-9]+))"
)
_AROUND = r"(?:[ \t*_`~=:$£€¥({\[]|\\boxed|\\[(\[]){0,20}"  # on the same line
# After a mark, a space may follow the minus sign, and a calculation with units may come before its
# result.
_UNIT = r"(?: ?%| ?[a-zA-Z]{1,20}(?: [a-zA-Z]{1,20}){0,2})?"
_TERM = rf"[ $£€¥(\[]{{0,4}}-?[0-9](?:[0-9.,/]{{0,20}}[0-9])?[)\]]*{_UNIT}[ )\]]{{0,4}}"
_MORE = rf"[-+*/x×÷]{_TERM}"
_SUM = rf"(?:{_TERM}(?:{_MORE}){{1,8}}(?:={_TERM}(?:{_MORE}){{0,8}}){{0,3}}=[ $£€¥*]{{0,4}})?"
_MARKED = _SUM + _NUMBER.replace(")-[$£€¥]?", ")-[ ]?[$£€¥]?")
_LAST = re.compile(_NUMBER)
# `#### 1. Add the eggs` is a heading if there is text below it.
_HASHES = re.compile(
    rf"(?<!#)####{_AROUND}(?>{_MARKED})(?P<heading>(?=[.)][ \t]+\w[^\n]*\n\s*\S))?"
)
_BOXED = re.compile(rf"\\boxed[ ]?\{{{_AROUND}{_MARKED}")
_ANSWER_IS = re.compile(rf"\banswer[ ]is{_AROUND}{_MARKED}", re.IGNORECASE)


def final_number(text: str, *, flexible: bool = True) -> Decimal | None:
    """The final number of a free-text answer.

    Args:
        text: The answer; the part before the last `</think>` is ignored.
        flexible: If no number is marked as the answer, use the last one.

    Returns:
        None if there is no such number.
    """
    text = text.rpartition("</think>")[2]
    for pattern, plain in _REWRITTEN:
        text = pattern.sub(plain, text)
    candidates = (
        _values(_answers(text))[:1]
        or _values(_BOXED.finditer(text))[-1:]
        or _values(_ANSWER_IS.finditer(text))[:1]
    )
    if not candidates and flexible:
        candidates = _values(_LAST.finditer(text))[-1:]
    return candidates[0] if candidates else None


def same_number(text: str, gold: str, *, flexible: bool = True) -> bool:
    """Whether a free-text answer has the same final number as the gold answer.

    Args:
        text: The answer.
        gold: The gold answer.
        flexible: As in `final_number`, for the answer only.
    """
    expected = final_number(gold)
    return expected is not None and final_number(text, flexible=flexible) == expected


def _answers(text: str) -> Iterator[re.Match[str]]:
    """The numbers marked with `####`, without headings that count from 1."""
    next_heading = 1
    for found in _HASHES.finditer(text):
        if found["heading"] is not None and _value(found) == next_heading:
            next_heading += 1
        else:
            yield found


def _values(marks: Iterable[re.Match[str]]) -> list[Decimal]:
    return [value for found in marks if (value := _value(found)) is not None]


def _value(found: re.Match[str]) -> Decimal | None:
    parts = found.groupdict()
    if parts["under"]:
        under = Decimal(parts["under"])
        if not under:
            return None
        value = _decimal(parts["mixed"] or "0") + _decimal(parts["over"]) / under
    elif parts["bare"]:
        value = Decimal(parts["bare"])
    else:
        value = _decimal(parts["integer"] + (parts["part"] or ""))
    return value.copy_negate() if parts["minus"] else value


def _decimal(digits: str) -> Decimal:
    return Decimal(digits.replace(",", ""))
