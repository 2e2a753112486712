"""A study, grouped and tested: what the page, the figures and the tables are all drawn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean as mean

from instil.methods import MethodName
from instil.report.answers import Answers, read_answers
from instil.report.groups import TITLES, Group, SetSummary, Value, group
from instil.report.pairs import PairTest, paired_tests
from instil.report.study import Study
from instil.results.cell import Domain


@dataclass(frozen=True)
class SetFacts:
    """What a set is, whoever is scored on it."""

    name: str
    domain: Domain
    chance: float
    majority: float
    written: bool
    """Whether its answers are written out, so that there is no chance and no label."""


@dataclass(frozen=True)
class Analysis:
    """A study, grouped and tested.

    Attributes:
        study: Where it comes from.
        groups: Cells that differ in nothing but the seed.
        sets: Those in the training rows' domain first.
        tests: Paired tests of two methods at the same settings.
        answers: What every cell answered to every row.
    """

    study: Study
    groups: list[Group]
    sets: list[SetFacts]
    tests: list[PairTest]
    answers: Answers

    def scored(self, name: str) -> list[tuple[Group, SetSummary]]:
        """The groups that were scored on a set, with their scores."""
        return [(found, found.scores[name]) for found in self.groups if name in found.scores]

    def tests_of(self, name: str) -> list[PairTest]:
        """The paired tests on a set."""
        return [test for test in self.tests if test.set == name]

    def best(self, name: str, method: MethodName) -> Group | None:
        """The group of a method that scores highest on a set; no control if there is another."""
        found = [pair for pair in self.scored(name) if pair[0].method == method]
        return max(found, key=lambda p: (not p[0].control, p[1].mean))[0] if found else None

    def values(self, key: str) -> list[Value]:
        """The values of a varied key, the smallest first if they are numbers."""
        found = dict.fromkeys(g.settings[key] for g in self.groups if key in g.settings)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in found)
        return sorted(found, key=_size) if numbers else list(found)

    def champions(self) -> list[Group]:
        """The group of each method that scores highest in the training rows' domain, on each task.

        A control stands for its method only where there is nothing else of it.
        """
        return self._highest(lambda found: (found.method, found.settings.get("task")))

    def contenders(self) -> list[Group]:
        """The same for each method with each tuning, each control, and each model and task."""
        return self._highest(
            lambda found: (
                found.method,
                found.tuning,
                found.control,
                found.settings.get("model"),
                found.settings.get("task"),
            )
        )

    def _highest(self, kind: Callable[[Group], object]) -> list[Group]:
        best: dict[object, Group] = {}
        for found in self.groups:
            held = best.setdefault(kind(found), found)
            if (not found.control, _strength(found)) > (not held.control, _strength(held)):
                best[kind(found)] = found
        return sorted(best.values(), key=lambda found: list(TITLES).index(found.method))


def analyse(study: Study) -> Analysis:
    """Groups a study's cells, and tests its methods in pairs."""
    answers = read_answers(study)
    groups = group(study, answers)
    sets: dict[str, list[SetSummary]] = {}
    for found in groups:
        for name, score in found.scores.items():
            sets.setdefault(name, []).append(score)
    facts = [
        SetFacts(
            name,
            scores[0].domain,
            scores[0].chance,
            mean([s.majority for s in scores]),
            scores[0].written,
        )
        for name, scores in sets.items()
    ]
    return Analysis(
        study=study,
        groups=groups,
        sets=sorted(facts, key=lambda found: found.domain != "in"),
        tests=paired_tests(groups, answers),
        answers=answers,
    )


def _strength(found: Group) -> float:
    scores = [s.mean for s in found.scores.values() if s.domain == "in"]
    scores = scores or [s.mean for s in found.scores.values()]
    return mean(scores) if scores else 0.0


def _size(value: Value) -> float:
    return float(value)
