r"""The number that an answer in free text ends in, and whether it is the right one.

Looked for in this order; what the first rule that finds a number says, counts:

1. `#### N`, the mark of GSM8K's own answers (Cobbe et al. 2021, arXiv:2110.14168). Of several, the first: a model that runs
   on invents a further question and answers it, too. A mark without a number is passed over, and so are headings that count
   from 1, as `#### 1. Add the eggs`.
2. `\boxed{N}`, as chat models write. Of several, the last: before it they box what they found on the way (the rule of
   Hendrycks et al. 2021, arXiv:2103.03874).
3. `the answer is N`, the end of the demonstrations of Wei et al. 2022 (arXiv:2201.11903). Of several, the first, as in 1.
4. The last number of the text, which is not a marked answer and can be switched off.

Numbers are decimal and exact, `3.50` is `3.5`. Signs of currency, units, `%` and emphasis around a number are passed over:
`25%` is 25. Of a sum that is marked, `#### 9 eggs * 2 = 18 eggs`, the result counts. A comma or a no-break space
groups thousands; a plain space parts two numbers. `1/2` is one number, the quotient, and so is `2 1/2`. Words (`million`)
and powers of ten are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal

# Other ways to write what the patterns below know, TeX most of all.
_REWRITTEN = (
    (re.compile("[\u2212\uff0d\u2013]"), "-"),
    (re.compile("(?<=[0-9])(?:\\{,\\}|\\\\,|,\\\\!|[\u00a0\u2009\u202f])(?=[0-9]{3})"), ","),
    (re.compile(r"(?<=[0-9])\s*(?=\\[dt]?frac)"), " "),
    (re.compile(r"\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}"), r"\1/\2"),
    (re.compile(r"\\[dt]?frac([0-9])([0-9])"), r"\1/\2"),
    (re.compile(r"\\(?=[$%])"), ""),
    (re.compile(r"\\text(?:bf)?(?=\{)"), ""),
)
_WHOLE = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"
_NUMBER = (
    r"(?P<minus>(?<![\w)\]}%])-[$£€¥]?)?"  # not that of 48-24
    rf"(?:(?:(?P<mixed>{_WHOLE})[ ])?(?<![0-9]/)(?P<over>(?:{_WHOLE})(?:\.[0-9]+)?)/(?P<under>[0-9]+)(?![./]?[0-9])"
    rf"|(?P<whole>{_WHOLE})(?P<part>\.[0-9]+)?"
    r"|(?<![\w.])(?P<bare>\.[0-9]+))"
)
_AROUND = r"(?:[ \t*_`~=:$£€¥({\[]|\\boxed|\\[(\[]){0,20}"  # on the same line
# After a mark a sign may stand apart, and a sum with units before its result.
_UNIT = r"(?: ?%| ?[a-zA-Z]{1,20}(?: [a-zA-Z]{1,20}){0,2})?"
_TERM = rf"[ $£€¥(\[]{{0,4}}-?[0-9](?:[0-9.,/]{{0,20}}[0-9])?[)\]]*{_UNIT}[ )\]]{{0,4}}"
_MORE = rf"[-+*/x×÷]{_TERM}"
_SUM = rf"(?:{_TERM}(?:{_MORE}){{1,8}}(?:={_TERM}(?:{_MORE}){{0,8}}){{0,3}}=[ $£€¥*]{{0,4}})?"
_MARKED = _SUM + _NUMBER.replace(")-[$£€¥]?", ")-[ ]?[$£€¥]?")
_LAST = re.compile(_NUMBER)
# What begins with `1. Add the eggs` is a heading if anything stands below it.
_HASHES = re.compile(
    rf"(?<!#)####{_AROUND}(?>{_MARKED})(?P<heading>(?=[.)][ \t]+\w[^\n]*\n\s*\S))?"
)
_BOXED = re.compile(rf"\\boxed[ ]?\{{{_AROUND}{_MARKED}")
_SAID = re.compile(rf"\banswer[ ]is{_AROUND}{_MARKED}", re.IGNORECASE)


def final_number(text: str, *, flexible: bool = True) -> Decimal | None:
    """The number that an answer in free text ends in.

    Args:
        text: The answer; what stands before a `</think>` is left out.
        flexible: Whether the last number counts where none is marked as the answer.

    Returns:
        None where there is none.
    """
    text = text.rpartition("</think>")[2]
    for pattern, plain in _REWRITTEN:
        text = pattern.sub(plain, text)
    candidates = (
        _values(_answers(text))[:1]
        or _values(_BOXED.finditer(text))[-1:]
        or _values(_SAID.finditer(text))[:1]
    )
    if not candidates and flexible:
        candidates = _values(_LAST.finditer(text))[-1:]
    return candidates[0] if candidates else None


def same_number(text: str, gold: str, *, flexible: bool = True) -> bool:
    """Whether an answer in free text ends in the same number as the gold answer.

    Args:
        text: The answer.
        gold: The gold answer.
        flexible: As in `final_number`, for the answer.
    """
    expected = final_number(gold)
    return expected is not None and final_number(text, flexible=flexible) == expected


def _answers(text: str) -> Iterator[re.Match[str]]:
    """What `####` marks, without the headings that count from 1."""
    counted = 1
    for found in _HASHES.finditer(text):
        if found["heading"] is not None and _value(found) == counted:
            counted += 1
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
        value = _decimal(parts["whole"] + (parts["part"] or ""))
    return value.copy_negate() if parts["minus"] else value


def _decimal(digits: str) -> Decimal:
    return Decimal(digits.replace(",", ""))
