"""The analysis of a study: groups of cells and paired tests, for the page, figures and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean as mean

from instil.methods import MethodName
from instil.report.groups import TITLES, Group, SetSummary, Value, group
from instil.report.paired import PairTest, paired_tests
from instil.report.read import Marks, Study, read_marks, read_rows
from instil.results.schema import EvaluationRow, break_even
from instil.results.scores import Completions, Domain


@dataclass(frozen=True)
class SetFacts:
    """Facts about an evaluation set that are the same for all methods."""

    name: str
    domain: Domain
    chance: float
    majority: float
    written: bool
    """Whether its answers are free text, so that there are no labels and no chance level."""
    graded: bool
    """Whether it has gold outputs, so that there is an accuracy."""
    completions: Completions | None
    """Source of the completions for fidelity and cross-entropy; None for labels."""


@dataclass(frozen=True)
class Comparison:
    """The only student of a study, with zero-shot and the prompt that it replaces."""

    student: Group
    zero_shot: Group | None
    in_context: Group | None

    @property
    def tokens_saved(self) -> float | None:
        """Prompt tokens saved per query; None without the prompt that is replaced."""
        if self.in_context is None:
            return None
        return self.in_context.prompt_tokens - self.student.prompt_tokens

    @property
    def seconds_saved(self) -> float | None:
        """Seconds saved per query; None if they were not measured."""
        before = self.in_context.seconds_per_query if self.in_context else None
        after = self.student.seconds_per_query
        return None if before is None or after is None else before - after

    @property
    def break_even(self) -> int | None:
        """Number of queries that pay back the student's cost; None if a query saves no time."""
        saved = self.seconds_saved
        return None if saved is None else break_even(self.student.spent, saved)


@dataclass(frozen=True)
class Analysis:
    """The groups and paired tests of a study.

    Attributes:
        study: The study.
        groups: Groups of cells that differ only in the seed.
        sets: Evaluation sets; those of the training rows' domain come first.
        tests: Paired tests of two methods with the same settings.
        marks: Every cell's answer to every row.
        rows: (set, row) -> evaluation row; of a single run only.
    """

    study: Study
    groups: list[Group]
    sets: list[SetFacts]
    tests: list[PairTest]
    marks: Marks
    rows: Mapping[tuple[str, int], EvaluationRow] = field(default_factory=dict)

    def answered(self, name: str) -> list[tuple[Group, SetSummary]]:
        """The groups that were evaluated on a set, with their results."""
        return [(found, found.scores[name]) for found in self.groups if name in found.scores]

    def scored(self, name: str) -> list[tuple[Group, SetSummary]]:
        """The groups that have an accuracy on a set."""
        return [pair for pair in self.answered(name) if pair[1].accuracy]

    def tests_of(self, name: str) -> list[PairTest]:
        """The paired tests on a set."""
        return [test for test in self.tests if test.set == name]

    def best(self, name: str, method: MethodName) -> Group | None:
        """The best group of a method on a set; a control only if there is no other group."""
        found = [pair for pair in self.answered(name) if pair[0].method == method]
        return max(found, key=lambda p: (not p[0].control, p[1].merit))[0] if found else None

    @property
    def students(self) -> list[Group]:
        """The groups that were trained."""
        return [found for found in self.groups if found.cells[0].training]

    @property
    def comparison(self) -> Comparison | None:
        """The study's only student and its comparisons; None with several students or none."""
        if len(self.students) != 1:
            return None
        zero_shot = [found for found in self.groups if found.method == "zero_shot"]
        prompted = [found for found in self.groups if found.method == "in_context"]
        plain = [found for found in prompted if found.plain_prompt and not found.control]
        return Comparison(self.students[0], _only(zero_shot), _only(plain or prompted))

    def values(self, key: str) -> list[Value]:
        """The values of a varied key; numbers are sorted."""
        found = dict.fromkeys(g.settings[key] for g in self.groups if key in g.settings)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in found)
        return sorted(found, key=_size) if numbers else list(found)

    def champions(self) -> list[Group]:
        """The best group of each method on each task, in the training rows' domain.

        A control is used only if the method has no other group.
        """
        return self._highest(lambda found: (found.method, found.settings.get("task")))

    def contenders(self) -> list[Group]:
        """The best group of each method, separately for each tuning, control, model and task."""
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
    """Groups a study's cells and tests its methods in pairs."""
    marks = read_marks(study)
    groups = group(study, marks)
    sets: dict[str, list[SetSummary]] = {}
    for found in groups:
        for name, score in found.scores.items():
            sets.setdefault(name, []).append(score)
    facts = [
        SetFacts(
            name=name,
            domain=scores[0].domain,
            chance=scores[0].chance,
            majority=mean([s.majority for s in scores]),
            written=scores[0].written,
            graded=any(s.accuracy for s in scores),
            completions=scores[0].completions,
        )
        for name, scores in sets.items()
    ]
    return Analysis(
        study=study,
        groups=groups,
        sets=sorted(facts, key=lambda found: found.domain != "in"),
        tests=paired_tests(groups, marks),
        marks=marks,
        rows=read_rows(study),
    )


def _only(groups: list[Group]) -> Group | None:
    return groups[0] if len(groups) == 1 else None


def _strength(found: Group) -> float:
    merits = [s.merit for s in found.scores.values() if s.domain == "in"]
    merits = merits or [s.merit for s in found.scores.values()]
    return mean(merits) if merits else 0.0


def _size(value: Value) -> float:
    return float(value)
