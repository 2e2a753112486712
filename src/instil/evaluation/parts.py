"""Fidelity by turn of a conversation, and by position in a completion."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from instil.evaluation.fidelity import RowLikelihood
from instil.results.scores import PartFidelity

POSITIONS = ((1, 1), (2, 4), (5, 16), (17, 64), (65, None))
"""Places in a completion, from 1. Each part has a fidelity of its own."""


def by_turn(rows: Sequence[RowLikelihood], turns: Sequence[int | None]) -> list[PartFidelity]:
    """Fidelity of each turn of conversations.

    Args:
        rows: What was measured of each row.
        turns: Number of each row's answer in its conversation; None if it is in none.
    """
    found: dict[int, list[RowLikelihood]] = {}
    for row, number in zip(rows, turns, strict=False):
        if number is not None:
            found.setdefault(number, []).append(row)
    return [
        _part(
            f"turn {number}", [kl for row in of for kl in row.kl], [a for r in of for a in r.agrees]
        )
        for number, of in sorted(found.items())
        if any(row.kl for row in of)
    ]


def by_position(rows: Sequence[RowLikelihood]) -> list[PartFidelity]:
    """Fidelity of each part of a completion."""
    made = []
    for first, last in POSITIONS:
        kl = [value for row in rows for value in row.kl[first - 1 : last]]
        agrees = [value for row in rows for value in row.agrees[first - 1 : last]]
        if kl:
            name = f"token {first}" if first == last else f"tokens {first} to {last}"
            made.append(_part(name if last else f"tokens from {first}", kl, agrees))
    return made


def _part(name: str, kl: Sequence[float], agrees: Sequence[bool]) -> PartFidelity:
    return PartFidelity(
        part=name, kl_to_teacher=max(0.0, fmean(kl)), agreement=fmean(agrees), tokens=len(kl)
    )
