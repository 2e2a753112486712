"""Formats the numbers of a report.

Text, tables and figures use the same functions, so a quantity is rounded in the same way
everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NBSP = "\N{NO-BREAK SPACE}"
MISSING = "\N{EM DASH}"


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage; 0.85 gives `85.0 %`."""
    return _typeset(f"{100 * value:.{digits}f}{NBSP}%")


def whole_percent(value: float) -> str:
    """A share as an integer percentage, never rounded to 0 or 100 unless it is 0 or 1."""
    rounded = round(100 * value)
    if rounded >= 100 and value < 1:
        rounded = 99
    if rounded == 0 and value > 0:
        return f"under 1{NBSP}%"
    return _typeset(f"{rounded}{NBSP}%")


def interval(low: float, high: float) -> str:
    """An interval of shares, as percentages."""
    return f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}{NBSP}%"


def points(difference: float) -> str:
    """A difference of two shares, in percentage points."""
    size = f"{100 * difference:.1f}"
    return _typeset(f"{size}{NBSP}{'point' if size in ('1.0', '-1.0') else 'points'}")


def signed(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return ("+" if difference > 0 else "") + points(difference)


def p_text(p: float) -> str:
    """A p value for use in a sentence."""
    if p < 0.001:
        return f"p{NBSP}<{NBSP}0.001"
    return f"p{NBSP}={NBSP}{p:.2g}" if p < 0.1 else f"p{NBSP}={NBSP}{p:.2f}"


def number(value: float, digits: int = 3) -> str:
    """A quantity with `digits` significant digits and commas for thousands."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return _typeset(f"{value:.1e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return _typeset(f"{value:,.{decimals}f}")


def count(value: int, singular: str = "", plural: str = "") -> str:
    """An integer with commas for thousands, and its noun; `plural` is `singular` + s by default."""
    noun = singular if value == 1 else plural or f"{singular}s"
    return f"{value:,}{NBSP}{noun}" if singular else f"{value:,}"


def fixed(value: float, decimals: int = 1) -> str:
    """A quantity with a fixed number of decimals, and commas for thousands."""
    return _typeset(f"{value:,.{decimals}f}")


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{number(seconds)}{NBSP}s"
    hours, rest = divmod(round(seconds), 3600)
    if not hours:
        return f"{rest // 60}{NBSP}min{NBSP}{rest % 60}{NBSP}s"
    return f"{hours}{NBSP}h{NBSP}{rest // 60}{NBSP}min"


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _typeset(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
