"""Paired tests: two methods, or a method and its control, compared on the same rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from instil.methods import METHODS
from instil.report.groups import CONTROLS, TITLES, Group
from instil.report.read import K, Mark, Marks
from instil.results.recovery import recovery_interval
from instil.results.statistics import holm, mcnemar

SIGNIFICANT = 0.05
Outcome = Literal["better", "worse", "level"]
_RANK = {method: rank for rank, method in enumerate(TITLES)}


@dataclass(frozen=True)
class PairTest:
    """A paired test of two groups on one set.

    Attributes:
        set: The set's name.
        one: The group of the later method in the table of methods; or the method, not its control.
        other: The group to compare with. All settings that both have are equal; only the prompt
            that a student replaces may have another teacher.
        seeds: Number of seeds that both have with the same rows.
        rows: Number of different rows in these seeds.
        compared: Number of rows of all these seeds.
        difference: Accuracy of `one` minus accuracy of `other`, over all rows compared.
        only_one: Number of rows that only `one` gets right, or on which it has the higher score.
        only_other: Number of rows that only `other` gets right.
        both: Number of rows that both get right in every seed.
        p: p value of McNemar's exact test, two-sided. For a metric that gives numbers, it is the
            sign test.
        p_holm: The p value with Holm's correction for all pairs of the set.
    """

    set: str
    one: Group
    other: Group
    seeds: int
    rows: int
    compared: int
    difference: float
    only_one: int
    only_other: int
    both: int
    p: float
    p_holm: float

    @property
    def controls(self) -> bool:
        """Whether `other` is a control of the method of `one`."""
        return self.one.method == self.other.method

    @property
    def separated(self) -> bool:
        """Whether the difference is significant."""
        return self.p_holm < SIGNIFICANT

    @property
    def outcome(self) -> Outcome:
        """Whether `one` is better or worse than `other`, or not significantly different."""
        if not self.separated:
            return "level"
        # By the counts that the test uses.
        return "better" if self.only_one > self.only_other else "worse"


def paired_tests(groups: Sequence[Group], marks: Marks) -> list[PairTest]:
    """Tests all pairs of methods with the same settings, and each method against its controls.

    Each set has its own tests, with Holm's correction over its pairs.
    """
    pairs = [
        (one, other) if _first(one) > _first(other) else (other, one)
        for one, other in combinations(groups, 2)
        if _comparable(one, other) or _controlled(one, other)
    ]
    tested: list[PairTest] = []
    for name in dict.fromkeys(name for found in groups for name in found.scores):
        of_set = [t for one, other in pairs if (t := _test(name, one, other, marks)) is not None]
        corrected = holm([test.p for test in of_set])
        tested += [replace(t, p_holm=p) for t, p in zip(of_set, corrected, strict=True)]
    return tested


def _first(group: Group) -> tuple[int, bool]:
    return _RANK[group.method], group.control is None


def _controlled(one: Group, other: Group) -> bool:
    """Whether one group is the control of the other, and all other settings are equal."""
    if one.method != other.method or (one.control is None) == (other.control is None):
        return False
    keys = one.settings.keys() | other.settings.keys()
    differ = {key for key in keys if one.settings.get(key) != other.settings.get(key)}
    ks = {group.settings.get(K) for group in (one, other)}
    return differ <= CONTROLS and (K not in differ or 0 in ks)


def _comparable(one: Group, other: Group) -> bool:
    """Whether two methods are equal in all settings that both have.

    Exception: a student and the plain prompt are compared even if their teachers differ.
    """
    if one.method == other.method:
        return False
    shared = set(one.settings) & set(other.settings) - {"method"}
    differ = {key for key in shared if one.settings[key] != other.settings[key]}
    learnt = {METHODS[group.method].learns for group in (one, other)}
    replaced = "targets" in learnt and any(group.plain_prompt for group in (one, other))
    return not differ or (replaced and all(key.startswith("teacher.") for key in differ))


def _test(name: str, one: Group, other: Group, marks: Marks) -> PairTest | None:
    cells = {cell.seed: cell.name for cell in other.cells}
    lead: defaultdict[tuple[str, str | None, int], float] = defaultdict(float)
    missed: set[tuple[str, str | None, int]] = set()
    seeds = compared = 0
    for cell in one.cells:
        ours = marks.get(cell.name, {}).get(name, {})
        theirs = marks.get(cells.get(cell.seed, ""), {}).get(name, {})
        if not _same_rows(ours, theirs):
            continue
        graded = [row for row in sorted(ours) if ours[row].score is not None]
        seeds += bool(graded)
        compared += len(graded)
        seen: Counter[tuple[str, str | None]] = Counter()
        for row in graded:
            text = ours[row][:2]
            seen[text] += 1
            hits = ours[row].score or 0.0, theirs[row].score or 0.0
            lead[(*text, seen[text])] += hits[0] - hits[1]
            if hits != (1, 1):
                missed.add((*text, seen[text]))
    if not seeds:
        return None
    # A row of several seeds counts once, for the group that is right on it in more seeds. If it
    # counted once per seed, more seeds would reduce p without more evidence.
    won = Counter((margin > 0) - (margin < 0) for margin in lead.values())
    p = mcnemar(won[1], won[-1])
    return PairTest(
        set=name,
        one=one,
        other=other,
        seeds=seeds,
        rows=len(lead),
        compared=compared,
        difference=sum(lead.values()) / compared,
        only_one=won[1],
        only_other=won[-1],
        both=len(lead) - len(missed),
        p=p,
        p_holm=p,
    )


def recovery_bounds(
    zero_shot: Group, in_context: Group, student: Group, name: str, marks: Marks
) -> tuple[float, float] | None:
    """The interval of a student's recovery on a set; see `recovery_interval`.

    A row of several seeds counts as one row. Returns None if no predictions were stored, too.
    """
    others = [{c.seed: c.name for c in found.cells} for found in (zero_shot, in_context)]
    sums: dict[tuple[str, str | None, int], list[float]] = {}
    for cell in student.cells:
        names = [*(cells.get(cell.seed, "") for cells in others), cell.name]
        answers = [marks.get(found, {}).get(name, {}) for found in names]
        if not all(_same_rows(answers[-1], theirs) for theirs in answers):
            continue
        seen: Counter[tuple[str, str | None]] = Counter()
        for row in sorted(answers[-1]):
            text = answers[-1][row][:2]
            seen[text] += 1
            if answers[-1][row].score is not None:
                known = sums.setdefault((*text, seen[text]), [0.0, 0.0, 0.0])
                for method, marked in enumerate(answers):
                    known[method] += marked[row].score or 0.0
    zeros, contexts, students = zip(*sums.values(), strict=True) if sums else ((), (), ())
    return recovery_interval(zeros, contexts, students)


def _same_rows(ours: Mapping[int, Mark], theirs: Mapping[int, Mark]) -> bool:
    return ours.keys() == theirs.keys() and all(
        mark[:2] == theirs[row][:2] for row, mark in ours.items()
    )
