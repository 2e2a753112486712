"""Two methods, or one and its control, on the same rows: which gets right what the other gets wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from instil.methods import METHODS
from instil.report.answers import Answer, Answers
from instil.report.groups import CONTROLS, TITLES, Group
from instil.report.study import K
from instil.results.statistics import holm, mcnemar

SIGNIFICANT = 0.05
_RANK = {method: rank for rank, method in enumerate(TITLES)}


@dataclass(frozen=True)
class PairTest:
    """A paired test of two groups on one set.

    Attributes:
        set: The set's name.
        one: The group that is trained more; of a method and its control, the method.
        other: The group that it is held against, equal in every setting that both have; the prompt that a student replaces may
            differ in the teacher.
        seeds: Seeds that both have with the same rows.
        rows: Different rows among them.
        compared: Rows of all these seeds.
        difference: Accuracy of `one` minus that of `other`, over all rows compared.
        only_one: Rows that only `one` gets right.
        only_other: Rows that only `other` gets right.
        p: Exact, two-sided, by McNemar.
        p_holm: The same, corrected for all pairs of the set.
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
    p: float
    p_holm: float

    @property
    def controls(self) -> bool:
        """Whether a method is held against its own control."""
        return self.one.method == self.other.method

    @property
    def separated(self) -> bool:
        """Whether the rows tell the two apart."""
        return self.p_holm < SIGNIFICANT


def paired_tests(groups: Sequence[Group], answers: Answers) -> list[PairTest]:
    """Tests every two methods at the same settings, and every method against its controls.

    All of that set by set, with Holm's correction in a set.
    """
    pairs = [
        (one, other) if _first(one) > _first(other) else (other, one)
        for one, other in combinations(groups, 2)
        if _comparable(one, other) or _controlled(one, other)
    ]
    tested: list[PairTest] = []
    for name in dict.fromkeys(name for found in groups for name in found.scores):
        of_set = [t for one, other in pairs if (t := _test(name, one, other, answers)) is not None]
        corrected = holm([test.p for test in of_set])
        tested += [replace(t, p_holm=p) for t, p in zip(of_set, corrected, strict=True)]
    return tested


def _first(group: Group) -> tuple[int, bool]:
    return _RANK[group.method], group.control is None


def _controlled(one: Group, other: Group) -> bool:
    """Whether one is the other's control, and equal to it in all else."""
    if one.method != other.method or (one.control is None) == (other.control is None):
        return False
    keys = one.settings.keys() | other.settings.keys()
    differ = {key for key in keys if one.settings.get(key) != other.settings.get(key)}
    ks = {group.settings.get(K) for group in (one, other)}
    return differ <= CONTROLS and (K not in differ or 0 in ks)


def _comparable(one: Group, other: Group) -> bool:
    """Whether two methods are equal in every setting that both have; a student may have learnt from more than the prompt it replaces."""
    if one.method == other.method:
        return False
    shared = set(one.settings) & set(other.settings) - {"method"}
    differ = {key for key in shared if one.settings[key] != other.settings[key]}
    learnt = {METHODS[group.method].learns for group in (one, other)}
    replaced = "targets" in learnt and any(group.plain_prompt for group in (one, other))
    return not differ or (replaced and all(key.startswith("teacher.") for key in differ))


def _test(name: str, one: Group, other: Group, answers: Answers) -> PairTest | None:
    cells = {cell.seed: cell.name for cell in other.cells}
    lead: Counter[tuple[str, str, int]] = Counter()
    seeds = compared = 0
    for cell in one.cells:
        ours = answers.get(cell.name, {}).get(name, {})
        theirs = answers.get(cells.get(cell.seed, ""), {}).get(name, {})
        if not ours or not _same_rows(ours, theirs):
            continue
        seeds += 1
        compared += len(ours)
        seen: Counter[tuple[str, str]] = Counter()
        for row in sorted(ours):
            text = (ours[row].input, ours[row].expected)
            seen[text] += 1
            lead[(*text, seen[text])] += ours[row].right - theirs[row].right
    if not seeds:
        return None
    # A row that several seeds share is one row, won by who is right on it in more of them: counted
    # once a seed, it would pass for several and make any p as small as one likes.
    won = Counter((margin > 0) - (margin < 0) for margin in lead.values())
    p = mcnemar(won[1], won[-1])
    difference = sum(lead.values()) / compared
    return PairTest(name, one, other, seeds, len(lead), compared, difference, won[1], won[-1], p, p)


def _same_rows(ours: Mapping[int, Answer], theirs: Mapping[int, Answer]) -> bool:
    return ours.keys() == theirs.keys() and all(
        answer[:2] == theirs[row][:2] for row, answer in ours.items()
    )
