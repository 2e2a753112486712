"""The rows that a study's page shows in full: those on which its methods disagree, and confusions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from instil.report.analysis import Analysis, SetFacts
from instil.report.answers import Answer
from instil.report.groups import Group
from instil.report.numerals import percent

ROWS_PER_SET = 100
"""Rows of a set that the page holds, so that it stays a file that can be mailed."""
LONGEST_TEXT = 2000
"""Characters of a text that the page holds."""
MOST_LABELS = 12
"""Labels up to which a confusion matrix is legible."""


@dataclass(frozen=True)
class Reply:
    """What one method answered to a row."""

    predicted: str
    right: bool
    confidence: str
    written: str | None


@dataclass(frozen=True)
class BrowsedRow:
    """A row on which methods disagree; a method without an answer has None.

    Of labels, some are right and others wrong; of written answers, they come to different ones.
    """

    set: str
    filter: str
    number: int
    input: str
    expected: str
    replies: tuple[Reply | None, ...]


@dataclass(frozen=True)
class Browser:
    """The rows on which methods disagree, in one seed.

    Attributes:
        seed: The seed; None where no predictions were stored.
        methods: The group of each method that is shown: the one that scores highest.
        rows: At most `ROWS_PER_SET` a set.
        filters: (key, name, rows shown, rows on which methods disagree), a set each.
    """

    seed: int | None
    methods: list[Group]
    rows: list[BrowsedRow]
    filters: list[tuple[str, str, int, int]]


@dataclass(frozen=True)
class Matrix:
    """A group's confusion on a set: gold label -> (rows, share of the gold label's rows)."""

    title: str
    method: str
    labels: list[str]
    lines: list[tuple[str, list[tuple[int, float]]]]


def browse(analysis: Analysis) -> Browser:
    """Picks the rows on which the best groups of the methods disagree, in the seed most of them have."""
    groups = analysis.champions()
    seeds = Counter(c.seed for g in groups for c in g.cells if analysis.answers.get(c.name))
    if not seeds:
        return Browser(None, groups, [], [])
    seed = min(seeds, key=lambda s: (-seeds[s], s))
    cells = [next((c.name for c in g.cells if c.seed == seed), "") for g in groups]
    rows: list[BrowsedRow] = []
    filters = []
    for number, facts in enumerate(analysis.sets):
        columns = [analysis.answers.get(cell, {}).get(facts.name, {}) for cell in cells]
        found = _disputed(facts, f"set-{number}", columns)
        rows += found[:ROWS_PER_SET]
        filters.append((f"set-{number}", facts.name, len(found[:ROWS_PER_SET]), len(found)))
    return Browser(seed, groups, rows, filters)


def _disputed(
    facts: SetFacts, filter: str, columns: Sequence[dict[int, Answer]]
) -> list[BrowsedRow]:
    found = []
    for number in sorted({row for column in columns for row in column}):
        answers = [column.get(number) for column in columns]
        there = [answer for answer in answers if answer]
        # Methods of several tasks or studies may number different rows alike.
        if len({answer[:2] for answer in there}) > 1:
            continue
        if len({a.predicted if facts.written else a.right for a in there}) < 2:
            continue
        found.append(
            BrowsedRow(
                set=facts.name,
                filter=filter,
                number=number,
                input=_cut(there[0].input),
                expected=there[0].expected,
                replies=tuple(_reply(answer) if answer else None for answer in answers),
            )
        )
    # All wrong in different ways is told last: it is what remains when there is nothing better.
    return sorted(found, key=lambda row: len({r.right for r in row.replies if r}) < 2)


def _reply(answer: Answer) -> Reply:
    sure = "" if answer.confidence is None else percent(answer.confidence, 0)
    written = None if answer.written is None else _cut(answer.written)
    return Reply(answer.predicted, answer.right, sure, written)


def _cut(text: str) -> str:
    left = len(text) - LONGEST_TEXT
    return text if left <= 0 else f"{text[:LONGEST_TEXT]}… ({left:,} more characters)"


def matrices(analysis: Analysis, facts: SetFacts) -> list[Matrix]:
    """The confusion of each method with each tuning on a set; empty past `MOST_LABELS` labels."""
    found = []
    for group in analysis.contenders():
        score = group.scores.get(facts.name)
        if score is None:
            continue
        labels = list(
            dict.fromkeys([*score.confusion, *(p for row in score.confusion.values() for p in row)])
        )
        if len(labels) > MOST_LABELS:
            return []
        lines = []
        for gold, row in score.confusion.items():
            total = sum(row.values()) or 1
            lines.append((gold, [(row.get(p, 0), row.get(p, 0) / total) for p in labels]))
        found.append(Matrix(group.label(), group.method, labels, lines))
    return found
