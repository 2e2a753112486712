"""How the report writes numbers.

One spelling for the text, the tables and the figures, so that a reader who compares two of them
never meets the same quantity rounded in two ways.
"""

from __future__ import annotations

import math

from instil.results.schema import Proportion

NBSP = "\N{NO-BREAK SPACE}"
MISSING = "\N{EM DASH}"


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage, `0.85` to `85.0 %`."""
    return _typeset(f"{100 * value:.{digits}f}{NBSP}%")


def whole_percent(value: float) -> str:
    """A share as a whole percentage that rounding never carries onto 0 or 100."""
    rounded = round(100 * value)
    if rounded >= 100 and value < 1:
        rounded = 99
    if rounded == 0 and value > 0:
        return f"under 1{NBSP}%"
    return _typeset(f"{rounded}{NBSP}%")


def interval(proportion: Proportion) -> str:
    """The 95 % interval alone, as percentages."""
    return f"{100 * proportion.low:.1f}\N{EN DASH}{100 * proportion.high:.1f}{NBSP}%"


def points(difference: float) -> str:
    """A difference of two shares, in percentage points."""
    size = f"{100 * difference:.1f}"
    return _typeset(f"{size}{NBSP}{'point' if size in ('1.0', '-1.0') else 'points'}")


def number(value: float, digits: int = 3) -> str:
    """A quantity with `digits` significant digits and its thousands apart."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return _typeset(f"{value:.1e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return _typeset(f"{value:,.{decimals}f}")


def count(value: int, one: str = "", many: str = "") -> str:
    """A whole number with its thousands apart and its noun, `many` being `one` + s unless given."""
    noun = one if value == 1 else many or f"{one}s"
    return f"{value:,}{NBSP}{noun}" if one else f"{value:,}"


def fixed(value: float, decimals: int = 1) -> str:
    """A quantity with the same decimals as the rest of its column, and its thousands apart."""
    return _typeset(f"{value:,.{decimals}f}")


def duration(seconds: float) -> str:
    """A span of time in the units that people would say it in."""
    if seconds < 120:
        return f"{number(seconds)}{NBSP}s"
    hours, rest = divmod(round(seconds), 3600)
    if not hours:
        return f"{rest // 60}{NBSP}min{NBSP}{rest % 60}{NBSP}s"
    return f"{hours}{NBSP}h{NBSP}{rest // 60}{NBSP}min"


def _typeset(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
