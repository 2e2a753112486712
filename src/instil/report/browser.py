"""The evaluation rows that a page shows with each method's answer, and confusion matrices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from instil.methods import METHODS
from instil.report.analysis import Analysis, SetFacts
from instil.report.groups import Group
from instil.report.numerals import percent
from instil.report.read import Mark, printable

ROWS_PER_SET = 100
"""Maximum rows per set in the page of a study, so that the file is small enough for e-mail."""
ROWS_OF_A_RUN = 2000
"""Maximum rows per set in the page of a single run, which also shows rows without disagreement."""
LONGEST_TEXT = 2000
"""Maximum characters of a text in the page."""
MOST_LABELS = 12
"""Maximum labels of a confusion matrix, so that it is legible."""


@dataclass(frozen=True)
class Reply:
    """A method's answer to a row; `text` is the full answer if it is longer than `predicted`."""

    predicted: str
    right: bool | None
    confidence: str
    text: str | None
    parts: tuple[tuple[str, bool], ...] = ()
    """The student's answer in pieces: each with whether it differs from the teacher's answer."""
    notes: tuple[str, ...] = ()
    """Rules that the answer breaks, and how it ends if it has no end."""


@dataclass(frozen=True)
class BrowsedRow:
    """A row with each method's reply; None for a method without an answer."""

    set: str
    number: int
    input: str
    expected: str | None
    replies: tuple[Reply | None, ...]
    filters: tuple[str, ...]
    """Keys of the filters that show the row."""
    said: tuple[tuple[str, str], ...] = ()
    """The conversation before the answer: role and text of each message."""
    telling: tuple[bool, float] = (False, 0.0)
    """Whether the student breaks a rule that its teacher obeys, and its KL to the teacher."""


@dataclass(frozen=True)
class Filter:
    """A filter button: its key, its name, and the number of rows that it shows."""

    key: str
    name: str
    rows: int


@dataclass(frozen=True)
class Browser:
    """Rows of one seed: all rows of a single run; of a study the rows on which methods disagree.

    Attributes:
        seed: The seed; None if no predictions were stored.
        methods: The best group of each method.
        rows: At most `ROWS_PER_SET` or `ROWS_OF_A_RUN` rows per set.
        filters: The filter buttons.
        cut: (set, number of rows shown, number of all rows) for sets that are not shown completely.
    """

    seed: int | None
    methods: list[Group]
    rows: list[BrowsedRow]
    filters: list[Filter]
    cut: list[tuple[str, int, int]]


@dataclass(frozen=True)
class Matrix:
    """A group's confusion matrix on a set: gold label -> (rows, share of the gold label's rows)."""

    title: str
    method: str
    labels: list[str]
    lines: list[tuple[str, list[tuple[int, float]]]]


def browse(analysis: Analysis) -> Browser:
    """Chooses the seed that most of the methods' best groups have, and rows of this seed."""
    groups = analysis.champions()
    seeds = Counter(c.seed for g in groups for c in g.cells if analysis.marks.get(c.name))
    if not seeds:
        return Browser(None, groups, [], [], [])
    seed = min(seeds, key=lambda s: (-seeds[s], s))
    cells = [next((c.name for c in g.cells if c.seed == seed), "") for g in groups]
    single = analysis.study.single
    most = ROWS_OF_A_RUN if single else ROWS_PER_SET
    rows: list[BrowsedRow] = []
    cut = []
    for number, facts in enumerate(analysis.sets):
        columns = [analysis.marks.get(cell, {}).get(facts.name, {}) for cell in cells]
        found = list(_rows(analysis, facts, f"set-{number}", groups, columns))
        if not single:
            found = _disputed(facts, found)
        elif facts.written and not facts.graded:  # the most telling rows first
            found.sort(key=lambda row: row.telling, reverse=True)
        rows += found[:most]
        if len(found) > most:
            cut.append((facts.name, most, len(found)))
    return Browser(seed, groups, rows, _filters(analysis, groups, rows), cut)


def _rows(
    analysis: Analysis,
    facts: SetFacts,
    key: str,
    groups: Sequence[Group],
    columns: Sequence[Mapping[int, Mark]],
) -> Iterator[BrowsedRow]:
    rules = broken_rules(analysis)
    for number in sorted({row for column in columns for row in column}):
        marks = [column.get(number) for column in columns]
        answered = [mark for mark in marks if mark]
        # In several tasks or studies, different rows may have the same number.
        if len({mark[:2] for mark in answered}) == 1:
            teacher, student = _pair(groups, marks)
            row = analysis.rows.get((facts.name, number))
            said = row.messages[:-1] if row else []
            yield BrowsedRow(
                set=facts.name,
                number=number,
                input=_cut(answered[0].input),
                expected=answered[0].expected,
                replies=tuple(
                    _reply(mark, teacher if mark is student else None) if mark else None
                    for mark in marks
                ),
                filters=(key, *_passes(groups, marks), *_of_answers(teacher, student, rules)),
                said=tuple((one.role, _cut(printable(one.content))) for one in said),
                telling=(bool(_lost(teacher, student)), (student and student.kl) or 0.0),
            )


def _passes(groups: Sequence[Group], marks: Sequence[Mark | None]) -> Iterator[str]:
    answered = [mark for mark in marks if mark]
    right = {mark.right for mark in answered}
    # With gold outputs, methods disagree if some are right and others wrong. Without gold outputs,
    # they disagree if their answers differ.
    if len(right) > 1 or (right == {None} and len({m.predicted.strip() for m in answered}) > 1):
        yield "disagree"
    by_group = [(g, mark) for g, mark in zip(groups, marks, strict=True) if mark]
    trained = [mark for g, mark in by_group if g.cells[0].training]
    if trained and trained[-1].right is False:  # distillation is the last of the methods
        yield "wrong"
        if any(mark.right for g, mark in by_group if g.method == "in_context"):
            yield "lost"


def _filters(
    analysis: Analysis, groups: Sequence[Group], rows: Sequence[BrowsedRow]
) -> list[Filter]:
    names: dict[str, str] = {}
    if len(analysis.sets) > 1:
        names |= {f"set-{number}": facts.name for number, facts in enumerate(analysis.sets)}
    if len(groups) > 1:
        names["disagree"] = "Methods disagree"
    if any(facts.graded for facts in analysis.sets) and analysis.students:
        names["wrong"] = "Student wrong"
        if any(group.method == "in_context" for group in groups):
            names["lost"] = "Student wrong, in-context right"
    if analysis.study.single:
        names |= _NAMES
        for number, rule in enumerate(broken_rules(analysis)):
            names[f"rule-{number}"] = f"Student breaks: {rule}"
    passing = [Filter(k, name, sum(k in row.filters for row in rows)) for k, name in names.items()]
    used = [one for one in passing if one.rows or not one.key.startswith(("answer-", "rule-"))]
    return [Filter("", "All rows", len(rows)), *used]


_NAMES = {
    "answer-lost": "Student breaks a rule, in-context does not",
    "answer-endless": "Student without an end",
    "answer-length": "Student much longer or shorter",
    "answer-later": "Later turns",
}
"""Filters by what the answers are like."""
MUCH = 1.5
"""Factor from which one answer is much longer than another one."""


def broken_rules(analysis: Analysis) -> list[str]:
    """The rules that a student breaks in some row of a single run, at most `MOST_LABELS`."""
    found: dict[str, None] = {}
    for cell in analysis.study.cells if analysis.study.single else ():
        if METHODS[cell.method].learns:
            for of_set in analysis.marks.get(cell.name, {}).values():
                for mark in of_set.values():
                    found |= {rule: None for rule, obeyed in mark.rules.items() if not obeyed}
    return [*found][:MOST_LABELS]


def _pair(groups: Sequence[Group], marks: Sequence[Mark | None]) -> tuple[Mark | None, Mark | None]:
    """The answers of in-context and of the student; None for those that there are not."""
    teacher = student = None
    for found, mark in zip(groups, marks, strict=True):
        if found.method == "in_context":
            teacher = mark
        elif found.cells[0].training:
            student = mark
    return teacher, student


def _lost(teacher: Mark | None, student: Mark | None) -> list[str]:
    """The rules that the student breaks and its teacher obeys."""
    if teacher is None or student is None:
        return []
    return [
        rule for rule, obeyed in student.rules.items() if not obeyed and teacher.rules.get(rule)
    ]


def _of_answers(teacher: Mark | None, student: Mark | None, rules: Sequence[str]) -> Iterator[str]:
    """Keys of the filters by what the student's answer is like."""
    if student is None or student.ending is None:
        return
    if _lost(teacher, student):
        yield "answer-lost"
    if student.ending != "finished":
        yield "answer-endless"
    if teacher is not None and teacher.tokens and student.tokens:
        ratio = student.tokens / teacher.tokens
        if ratio > MUCH or ratio < 1 / MUCH:
            yield "answer-length"
    if (student.turn or 1) > 1:
        yield "answer-later"
    for number, rule in enumerate(rules):
        if student.rules.get(rule) is False:
            yield f"rule-{number}"


def _disputed(facts: SetFacts, rows: Sequence[BrowsedRow]) -> list[BrowsedRow]:
    """Rows with different answers (free text), or with right and wrong answers (labels)."""
    found = []
    for row in rows:
        replies = [reply for reply in row.replies if reply]
        if len({r.predicted if facts.written else r.right for r in replies}) > 1:
            found.append(row)
    # Rows that all methods get wrong come last.
    return sorted(found, key=lambda row: len({r.right for r in row.replies if r}) < 2)


def _reply(mark: Mark, teacher: Mark | None) -> Reply:
    """A reply; that of a student is compared with its teacher's."""
    sure = "" if mark.confidence is None else percent(mark.confidence, 0)
    longer = mark.text is not None and mark.text.strip() != mark.predicted
    notes = [f"breaks: {rule}" for rule, obeyed in mark.rules.items() if not obeyed]
    notes += [_ENDINGS[mark.ending]] if mark.ending in _ENDINGS else []
    predicted, parts = _cut(mark.predicted), tuple[tuple[str, bool], ...]()
    if teacher is not None and teacher.predicted != mark.predicted:
        parts = tuple(differences(_cut(teacher.predicted), predicted))
    text = _cut(mark.text or "") if longer else None
    return Reply(predicted, mark.right, sure, text, parts, tuple(notes))


_ENDINGS = {"cut": "without an end", "repeats": "repeats itself"}


def differences(before: str, after: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a text, each with whether it differs from another text, word by word."""
    one, two = (re.findall(r"\s+|\S+", text) for text in (before, after))
    matcher = SequenceMatcher(a=one, b=two, autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        if end > start:
            yield "".join(two[start:end]), kind != "equal"


def _cut(text: str) -> str:
    left = len(text) - LONGEST_TEXT
    return text if left <= 0 else f"{text[:LONGEST_TEXT]}… ({left:,} more characters)"


def matrices(analysis: Analysis, facts: SetFacts) -> list[Matrix]:
    """Confusion matrices per method and tuning; empty with more than `MOST_LABELS` labels."""
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
