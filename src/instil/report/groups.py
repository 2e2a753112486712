"""Groups of cells that differ only in the seed, and their scores over these seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean as mean
from typing import Literal, TypeAlias

from instil.methods import METHODS, MethodName
from instil.report.numerals import NBSP
from instil.report.read import UNCOMPARED, Cell, K, Marks, Study, different_rows, flat
from instil.results.schema import SPENT
from instil.results.scores import Completions, Domain, Proportion, SetScore
from instil.results.statistics import deviation, pooled, predicted_shares, t_interval, wilson

TITLES: dict[MethodName, str] = {
    name: method.label[0].upper() + method.label[1:] for name, method in METHODS.items()
}
TUNINGS = {"full": "full", "lora": "LoRA", "bitfit": "BitFit"}
NAMES = {
    K: "k",
    "objective.alpha": "\N{GREEK SMALL LETTER ALPHA}",
    "teacher.contexts": "contexts",
    "teacher.model": "teacher",
    "student.keep_layers": "layers kept",
    "training.rows": "training rows",
    "training.learning_rate": "learning rate",
}
Value: TypeAlias = str | int | float | bool
Standing = Literal["above", "at", "below", "unclear"]
Control = Literal["zero-shot teacher", "shuffled answers"]
"""A method without useful demonstrations, which shows how much the demonstrations contribute."""
ANSWERS = "demonstrations.answers"
CONTROLS = {K, ANSWERS}
"""Keys in which a control may differ from its method."""
UNSET = "not set"
"""Value of a key that is null in a cell; it distinguishes groups, but labels do not show it."""
NEAR = 0.1
"""If an interval includes chance and ends at most this much above it, the method guesses.

If the interval ends higher, the method may also be better than chance."""
SOLVED = 0.05
"""Accuracy that counts as near 0 for free-text answers, which have no chance level."""
FILES = "files"
"""Name of the task with the user's own files; its demonstrations are given, not sampled."""
IN_CONTEXT = {"task.demos", "task.instruction", "task.document", "task.k"}
"""Keys of that task that only affect the context."""


@dataclass(frozen=True)
class Accuracy:
    """A group's accuracy on one set.

    Attributes:
        mean: Mean over seeds.
        deviation: Standard deviation over seeds; None for one seed.
        low: Lower end of the mean's 95 % interval.
        high: Upper end of the interval.
        over: Whether the interval is over seeds (Student's t) or different rows (Wilson).
        standing: Comparison with chance and majority (for free text with `SOLVED`), which takes
            both intervals into account; unclear if the method may guess but may also be better.
    """

    mean: float
    deviation: float | None
    low: float
    high: float
    over: Literal["seeds", "rows"]
    standing: Standing


@dataclass(frozen=True)
class SetSummary:
    """A group's results on a set, over its seeds.

    Attributes:
        set: The set's name.
        domain: `in` for the training rows' domain, else `out`.
        seeds: Number of seeds.
        rows: Number of rows per seed; the lowest if seeds differ.
        different_rows: Number of different rows in all seeds, or `rows` if no predictions were
            stored.
        accuracy: Accuracy; None without gold outputs.
        written: Whether answers are free text.
        chance: 1 / number of labels; 0 for free text.
        majority: Share of the most frequent gold label, mean over seeds; 0 for free text.
        calibration_error: Mean over seeds; None for free text.
        cross_entropy: Cross-entropy of the completions, nats per token, mean over seeds; None for
            labels.
        verbalizer_mass: Mean over seeds; None for a classification head.
        kl: KL(teacher || student), mean over seeds; None without a teacher.
        agreement: Share of rows (for free text: tokens) with the same top-1 prediction as the
            teacher; None without a teacher.
        tokens: Number of completion tokens of all seeds; 0 for labels.
        completions: Source of the completions; None for labels.
        teacher: The teacher's accuracy on the same rows; None without a teacher.
        single_contexts: Accuracies of single contexts in all seeds, if several contexts are
            averaged.
        confusion: Confusion counts, summed over seeds.
        predicted: Share of rows per predicted label.
        answer_tokens: Mean length of answers, in tokens; None for labels.
        same_answer: Share of answers that are the teacher's; None without a teacher.
        leaks: Share of answers that repeat the context where the teacher does not; None for others.
        rules: Rule -> share of the answers that obey it.
    """

    set: str
    domain: Domain
    seeds: int
    rows: int
    different_rows: int
    accuracy: Accuracy | None
    written: bool
    chance: float
    majority: float
    calibration_error: float | None
    cross_entropy: float | None
    verbalizer_mass: float | None
    kl: float | None
    agreement: float | None
    tokens: int
    completions: Completions | None
    teacher: float | None
    single_contexts: tuple[float, ...]
    confusion: dict[str, dict[str, int]]
    predicted: dict[str, float]
    answer_tokens: float | None = None
    same_answer: float | None = None
    leaks: float | None = None
    rules: dict[str, float] = field(default_factory=dict)

    @property
    def graded(self) -> Accuracy:
        """The accuracy of a set that has gold outputs.

        Raises:
            ValueError: it has none.
        """
        if self.accuracy is None:
            raise ValueError(f"{self.set} has no gold outputs")
        return self.accuracy

    @property
    def mean(self) -> float:
        """Mean accuracy of a set that has gold outputs."""
        return self.graded.mean

    @property
    def deviation(self) -> float | None:
        """Its standard deviation over seeds; None for one seed."""
        return self.graded.deviation

    @property
    def merit(self) -> float:
        """Value for ranking settings: accuracy, or minus the KL without gold outputs."""
        if self.accuracy:
            return self.accuracy.mean
        return -math.inf if self.kl is None else -self.kl


@dataclass(frozen=True)
class Group:
    """Cells that differ only in the seed.

    Attributes:
        settings: This group's values of the varied keys that apply to it; always with the method.
        cells: One cell per seed, sorted by seed.
        scores: Results by set.
    """

    settings: dict[str, Value]
    cells: tuple[Cell, ...]
    scores: dict[str, SetSummary]

    @property
    def method(self) -> MethodName:
        """The method of all its cells."""
        return self.cells[0].method

    @property
    def tuning(self) -> str | None:
        """The tuning of all its cells."""
        return self.cells[0].tuning

    @property
    def written(self) -> bool:
        """Whether its answers are free text."""
        return not self.cells[0].labels

    @property
    def title(self) -> str:
        """The method's title; for free text without the word `Pattern`, which is about labels."""
        title = TITLES[self.method]
        return title.removeprefix("Pattern ").capitalize() if self.written else title

    @property
    def plain_prompt(self) -> bool:
        """Whether it is the prompt of a user without training: one context, no calibration."""
        teacher = dict(flat(self.cells[0].recipe))
        plain = {"teacher.model": None, "teacher.contexts": 1, "teacher.calibration": "none"}
        return self.method == "in_context" and all(
            teacher.get(key, value) == value for key, value in plain.items()
        )

    @property
    def control(self) -> Control | None:
        """The kind of control; None if the group is not a control."""
        if METHODS[self.method].learns == "targets" and self.settings.get(K) == 0:
            return "zero-shot teacher"
        return "shuffled answers" if self.settings.get(ANSWERS) == "shuffled" else None

    @property
    def prompt_tokens(self) -> float:
        """Prompt tokens per query, mean over seeds."""
        return mean([cell.prompt_tokens_mean for cell in self.cells])

    @property
    def seconds_per_query(self) -> float | None:
        """Seconds per query, mean over seeds; None if they were not measured."""
        return mean_of(cell.seconds_per_query for cell in self.cells)

    @property
    def drift(self) -> float | None:
        """KL(base || student) on unrelated text, mean over seeds; None if it was not measured."""
        return mean_of(cell.drift for cell in self.cells)

    @property
    def same_top(self) -> float | None:
        """Share of positions of unrelated text where base and student expect the same next token."""
        drifts = (cell.result.drift for cell in self.cells)
        return mean_of(drift.same_top if drift else None for drift in drifts)

    @property
    def truncated(self) -> int:
        """Maximum over seeds of the training completions that were cut at `max_new_tokens`."""
        return max(c.training.truncated_completions if c.training else 0 for c in self.cells)

    @property
    def spent(self) -> float:
        """Wall seconds to make the student, mean over seeds."""
        costs = [
            [c.phases[name].wall_seconds for name in SPENT if name in c.phases] for c in self.cells
        ]
        return mean([sum(seconds) for seconds in costs])

    def label(self, *, without: Iterable[str] = ()) -> str:
        """Name of the group: its method, and its settings except those in `without`."""
        hidden = {"method", *without}
        left = {k: v for k, v in self.settings.items() if k not in hidden and v != UNSET}
        if left.get(ANSWERS) == "gold":  # the normal value, except in the control
            del left[ANSWERS]
        words = (
            self.control if key == K and self.control and not value else worded(key, value)
            for key, value in left.items()
        )
        return ", ".join([self.title, *words])


def name_of(key: str) -> str:
    """Readable name of a setting."""
    return NAMES.get(key, key.rsplit(".", 1)[-1].replace("_", " "))


def value_text(value: Value) -> str:
    """Readable value of a setting."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def worded(key: str, value: Value) -> str:
    """Readable name and value of a setting."""
    if key == "tuning":
        return TUNINGS.get(str(value), str(value))
    if key in ("model", "task"):
        return str(value)
    if key == ANSWERS:
        return f"{value} answers"
    return f"{name_of(key)}{NBSP}={NBSP}{value_text(value)}"


def set_name(cell: Cell, score: SetScore, tasks: int) -> str:
    """A set's name, with its task if the study has several tasks."""
    return score.name if tasks == 1 else f"{cell.task}: {score.name}"


def group(study: Study, marks: Marks) -> list[Group]:
    """Groups a study's cells, in their order.

    If a group has two cells with the same seed, the second is left out: joined studies may share a
    baseline.
    """
    keys = list(dict.fromkeys(["method", *_leaves(study)]))
    gathered: dict[str, tuple[dict[str, Value], dict[int, Cell]]] = {}
    for cell in study.cells:
        applying = ((key, _value(cell, key)) for key in keys)
        settings = {key: value for key, value in applying if value is not None}
        identity = json.dumps(settings, sort_keys=True)
        gathered.setdefault(identity, (settings, {}))[1].setdefault(cell.seed, cell)
    tasks = len({cell.task for cell in study.cells})
    return [
        Group(
            settings,
            cells := tuple(c for _, c in sorted(seeds.items())),
            _scores(cells, tasks, marks),
        )
        for settings, seeds in gathered.values()
    ]


def _leaves(study: Study) -> list[str]:
    """The varied keys; for a key with sections as values, the keys in them that differ."""
    recipes = [(cell, dict(flat(cell.recipe))) for cell in study.cells]
    keys: list[str] = []
    for key in study.varied:
        if key.removesuffix(".name") in ("task", "tuning"):
            key = key.removesuffix(".name")
            keys.append(key)
        inner = dict.fromkeys(k for _, recipe in recipes for k in recipe if k.startswith(f"{key}."))
        if not inner:
            keys.append(key)
        for leaf in inner:
            # Only keys that differ within a tuning (or task): LoRA's rank does not distinguish LoRA
            # from BitFit.
            values = {
                ({"tuning": c.tuning, "task": c.task}.get(key), repr(recipe.get(leaf)))
                for c, recipe in recipes
                if _applies(c, leaf)
            }
            if len(values) > len({kind for kind, _ in values}) and leaf not in UNCOMPARED:
                keys.append(leaf)
    return [key for key in dict.fromkeys(keys) if key != "seed"]


def _value(cell: Cell, key: str) -> Value | None:
    """A cell's value of a varied key; None if the key does not apply to its method."""
    if not _applies(cell, key):
        return None
    own: dict[str, Value | None] = {
        "method": cell.method,
        "model": cell.model,
        "task": cell.task,
        "dtype": cell.dtype,
        "tuning": cell.tuning,
        K: cell.k,
    }
    if key in own:
        return own[key]
    found = cell.varied.get(key, dict(flat(cell.recipe)).get(key))
    if found is None:
        return "itself" if key == "teacher.model" else UNSET
    if isinstance(found, str | int | float):
        return found
    return json.dumps(found, ensure_ascii=False, default=str)


def _applies(cell: Cell, key: str) -> bool:
    # A cell lists the varied keys that matter to it. A cell of another grid may have a value of a
    # key that it does not list.
    if key in cell.varied:
        return True
    section = key.split(".", 1)[0]
    reads = METHODS[cell.method].context or METHODS[cell.method].teacher
    if section == "demonstrations":
        # k = 0 is a control for a teacher with demonstrations, but not if the task has the user's
        # own context.
        sampled = cell.recipe.get("task", {}).get("name") not in (None, FILES)
        return cell.k > 0 or (key == K and reads and sampled)
    if key in IN_CONTEXT:
        return reads
    if key == "task.inputs":
        return cell.training is not None
    if section == "teacher":
        return METHODS[cell.method].teacher
    if section == "objective":
        return METHODS[cell.method].learns == "targets"
    if section == "tuning":
        return cell.tuning is not None
    return section != "training" or cell.training is not None


def _scores(cells: Sequence[Cell], tasks: int, marks: Marks) -> dict[str, SetSummary]:
    by_set: dict[str, list[tuple[SetScore, SetScore | None]]] = {}
    for cell in cells:
        teachers = {score.name: score for score in cell.teacher}
        for score in cell.scores:
            name = set_name(cell, score, tasks)
            by_set.setdefault(name, []).append((score, teachers.get(score.name)))
    names = [cell.name for cell in cells]
    return {
        name: summarise(name, pairs, different_rows(marks, names, name))
        for name, pairs in by_set.items()
    }


def summarise(
    name: str, pairs: Sequence[tuple[SetScore, SetScore | None]], different: int = 0
) -> SetSummary:
    """A group's results on a set.

    Args:
        name: The set's name.
        pairs: The group's score and its teacher's, one pair per seed.
        different: Number of different rows in all seeds; 0 if it is unknown.
    """
    scores = [score for score, _ in pairs]
    rows = min(score.rows for score in scores)
    different = max(rows, different)
    chance, majority = scores[0].chance, mean([score.majority for score in scores])
    confusion = pooled(score.confusion for score in scores)
    floors = (chance, majority) if confusion else None
    proportions = [score.accuracy for score in scores if score.accuracy]
    fidelities = [score.fidelity for score in scores if score.fidelity]
    told = [score.written for score in scores if score.written]
    rules = dict.fromkeys(rule for one in told for rule in one.rules)
    return SetSummary(
        set=name,
        domain=scores[0].domain,
        seeds=len(scores),
        rows=rows,
        different_rows=different,
        accuracy=_accuracy(proportions, different, floors) if proportions else None,
        written=not confusion,
        chance=chance,
        majority=majority,
        calibration_error=mean_of(score.calibration_error for score in scores),
        cross_entropy=mean_of(score.cross_entropy for score in scores),
        verbalizer_mass=mean_of(score.verbalizer_mass for score in scores),
        kl=mean_of(f.kl_to_teacher for f in fidelities),
        agreement=mean_of(f.agreement for f in fidelities),
        tokens=sum(score.tokens or 0 for score in scores),
        completions=scores[0].completions,
        teacher=mean_of(t.accuracy.value for _, t in pairs if t and t.accuracy),
        single_contexts=tuple(single.accuracy for s in scores for single in s.single_contexts),
        confusion=confusion,
        predicted=predicted_shares(confusion),
        answer_tokens=mean_of(one.ends.tokens_mean for one in told),
        same_answer=mean_of(one.same_answer.value for one in told if one.same_answer),
        leaks=mean_of(one.leaks.share.value for one in told if one.leaks),
        rules={
            rule: mean([one.rules[rule].value for one in told if rule in one.rules])
            for rule in rules
        },
    )


def _accuracy(
    proportions: Sequence[Proportion], different: int, floors: tuple[float, float] | None
) -> Accuracy:
    values = [proportion.value for proportion in proportions]
    over_rows = wilson(mean(values), different)
    over_seeds = t_interval(values)
    low, high = over_seeds or over_rows
    # Seeds may agree by chance if there are few rows, so `standing` uses both intervals.
    ends = min(low, over_rows[0]), max(high, over_rows[1])
    return Accuracy(
        mean=mean(values),
        deviation=deviation(values),
        low=max(0.0, low),
        high=min(1.0, high),
        over="seeds" if over_seeds else "rows",
        standing=_standing(*ends, *floors) if floors else _standing_of_text(*ends),
    )


def _standing(low: float, high: float, chance: float, majority: float) -> Standing:
    if low > max(chance, majority):
        return "above"
    if high < min(chance, majority):
        return "below"
    return "at" if high <= max(chance, majority) + NEAR else "unclear"


def _standing_of_text(low: float, high: float) -> Standing:
    if low > SOLVED:
        return "above"
    return "at" if high <= SOLVED + NEAR else "unclear"


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None
