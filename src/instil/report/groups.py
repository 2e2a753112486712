"""Cells that differ in nothing but the seed, and what they score together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Literal, TypeAlias

from instil.methods import METHODS, MethodName
from instil.report.answers import Answers, different_rows
from instil.report.numerals import NBSP
from instil.report.study import UNCOMPARED, K, Study, flat
from instil.results.cell import Cell, Domain, SetScore
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
"""What is taken from a method to see what its demonstrations are worth."""
ANSWERS = "demonstrations.answers"
CONTROLS = {K, ANSWERS}
"""Keys in which a control may differ from what it controls."""
UNSET = "not set"
"""Value of a key that is null in a cell: it tells groups apart and is not shown in their names."""
NEAR = 0.1
"""An interval that includes chance and ends this little above it is one of guessing; a longer one
may hold skill as well."""
SOLVED = 0.05
"""Written answers have no chance to be held against: an interval that includes this share is near 0."""


@dataclass(frozen=True)
class SetSummary:
    """What a group scored on one set, over its seeds.

    Attributes:
        set: The set's name.
        domain: In the training rows' domain, or out of it.
        seeds: How many seeds were scored.
        rows: Rows of one seed, the fewest of them.
        different_rows: Different rows of all seeds; those of one seed where none were stored.
        mean: Accuracy, the mean over seeds.
        deviation: Its standard deviation over seeds; None for one.
        low: Lower end of the mean's 95 % interval.
        high: Upper end.
        over: What the interval is over: seeds (Student's t), or different rows (Wilson).
        standing: Where accuracy is against chance and majority, or of written answers against
            `SOLVED`, by both kinds of interval; unclear where they leave room for guessing and for
            skill.
        written: Whether answers are written out, not chosen from labels.
        chance: One over the number of labels; 0 for written answers.
        majority: Share of the most frequent gold label, the mean over seeds; 0 for written answers.
        calibration_error: The mean over seeds; None for written answers.
        cross_entropy: Of the gold answers, nats a token, the mean over seeds; None for labels.
        verbalizer_mass: The mean over seeds; None for a classification head.
        kl: KL(teacher || student), the mean over seeds; None without a teacher.
        agreement: Share of rows, or tokens, where both name the same; None without a teacher.
        teacher: The teacher's accuracy on the same rows; None without one.
        single_contexts: Accuracy of each context alone, where several are averaged, over seeds.
        confusion: Summed over seeds.
        predicted: Share of rows that each label is predicted for.
    """

    set: str
    domain: Domain
    seeds: int
    rows: int
    different_rows: int
    mean: float
    deviation: float | None
    low: float
    high: float
    over: Literal["seeds", "rows"]
    standing: Standing
    written: bool
    chance: float
    majority: float
    calibration_error: float | None
    cross_entropy: float | None
    verbalizer_mass: float | None
    kl: float | None
    agreement: float | None
    teacher: float | None
    single_contexts: tuple[float, ...]
    confusion: dict[str, dict[str, int]]
    predicted: dict[str, float]


@dataclass(frozen=True)
class Group:
    """Cells that differ in nothing but the seed.

    Attributes:
        settings: The varied keys that apply, with this group's values; the method is always there.
        cells: One a seed, in the order of seeds.
        scores: What they scored, by set.
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
        """Whether its answers are written out, not chosen from labels."""
        return not self.cells[0].labels

    @property
    def title(self) -> str:
        """Its method; a pattern with a verbalizer is nothing that a written answer has."""
        title = TITLES[self.method]
        return title.removeprefix("Pattern ").capitalize() if self.written else title

    @property
    def plain_prompt(self) -> bool:
        """Whether it is what a user would send without any training: one context, read by the model itself and not calibrated."""
        teacher = dict(flat(self.cells[0].recipe))
        plain = {"teacher.model": None, "teacher.contexts": 1, "teacher.calibration": "none"}
        return self.method == "in_context" and all(
            teacher.get(key, value) == value for key, value in plain.items()
        )

    @property
    def control(self) -> Control | None:
        """What it controls for; None where it is the method itself."""
        if METHODS[self.method].learns == "targets" and self.settings.get(K) == 0:
            return "zero-shot teacher"
        return "shuffled answers" if self.settings.get(ANSWERS) == "shuffled" else None

    def label(self, *, without: Iterable[str] = ()) -> str:
        """What tells this group from the others, in words."""
        hidden = {"method", *without}
        left = {k: v for k, v in self.settings.items() if k not in hidden and v != UNSET}
        if left.get(ANSWERS) == "gold":  # as everywhere but in the control
            del left[ANSWERS]
        said = (
            self.control if key == K and self.control and not value else worded(key, value)
            for key, value in left.items()
        )
        return ", ".join([self.title, *said])


def name_of(key: str) -> str:
    """What a person calls a setting."""
    return NAMES.get(key, key.rsplit(".", 1)[-1].replace("_", " "))


def value_text(value: Value) -> str:
    """A setting's value as a person writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def worded(key: str, value: Value) -> str:
    """A setting with its value."""
    if key == "tuning":
        return TUNINGS.get(str(value), str(value))
    if key in ("model", "task"):
        return str(value)
    if key == ANSWERS:
        return f"{value} answers"
    return f"{name_of(key)}{NBSP}={NBSP}{value_text(value)}"


def set_name(cell: Cell, score: SetScore, tasks: int) -> str:
    """A set's name, with its task where a study has several."""
    return score.name if tasks == 1 else f"{cell.task}: {score.name}"


def group(study: Study, answers: Answers) -> list[Group]:
    """Gathers a study's cells into groups, in the order in which they come.

    A seed that a group has already is left out: joined studies may share a baseline.
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
            _scores(cells, tasks, answers),
        )
        for settings, seeds in gathered.values()
    ]


def _leaves(study: Study) -> list[str]:
    """The varied keys; one whose values are whole sections, as those of its leaves that differ."""
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
            # LoRA's rank is no difference between LoRA and BitFit, nor a pattern between two tasks: the name itself is.
            values = {
                ({"tuning": c.tuning, "task": c.task}.get(key), repr(recipe.get(leaf)))
                for c, recipe in recipes
                if _applies(c, leaf)
            }
            if len(values) > len({kind for kind, _ in values}) and leaf not in UNCOMPARED:
                keys.append(leaf)
    return [key for key in dict.fromkeys(keys) if key != "seed"]


def _value(cell: Cell, key: str) -> Value | None:
    """A cell's value of a varied key; None where the key does not apply to its method."""
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
    # A cell's own list names what makes a difference to it; a cell of another grid may not list a
    # key and have a value of it all the same.
    if key in cell.varied:
        return True
    section = key.split(".", 1)[0]
    if section == "demonstrations":
        # A teacher without demonstrations is a control of those that have some; a run's context may be an instruction.
        reads = METHODS[cell.method].context or METHODS[cell.method].teacher
        return cell.k > 0 or (key == K and reads and bool(cell.recipe.get("task")))
    if section == "context":
        return METHODS[cell.method].context or METHODS[cell.method].teacher
    if section == "teacher":
        return METHODS[cell.method].teacher
    if section == "objective":
        return METHODS[cell.method].learns == "targets"
    if section == "tuning":
        return cell.tuning is not None
    return section != "training" or cell.training is not None


def _scores(cells: Sequence[Cell], tasks: int, answers: Answers) -> dict[str, SetSummary]:
    by_set: dict[str, list[tuple[SetScore, SetScore | None]]] = {}
    for cell in cells:
        teachers = {score.name: score for score in cell.teacher}
        for score in cell.scores:
            name = set_name(cell, score, tasks)
            by_set.setdefault(name, []).append((score, teachers.get(score.name)))
    names = [cell.name for cell in cells]
    return {
        name: summarise(name, pairs, different_rows(answers, names, name))
        for name, pairs in by_set.items()
    }


def summarise(
    name: str, pairs: Sequence[tuple[SetScore, SetScore | None]], different: int = 0
) -> SetSummary:
    """What one group scored on one set.

    Args:
        name: The set's name.
        pairs: Its own score and its teacher's, a seed.
        different: How many different rows all seeds have; 0 counts those of one seed.
    """
    scores = [score for score, _ in pairs]
    accuracies = [score.accuracy.value for score in scores]
    rows = min(score.accuracy.n for score in scores)
    different = max(rows, different)
    over_rows = wilson(mean(accuracies), different)
    over_seeds = t_interval(accuracies)
    low, high = over_seeds or over_rows
    chance, majority = scores[0].chance, mean([score.majority for score in scores])
    confusion = pooled(score.confusion for score in scores)
    written = not confusion
    fidelities = [score.fidelity for score in scores if score.fidelity]
    taught = [teacher.accuracy.value for _, teacher in pairs if teacher]
    # Seeds may agree by luck while the rows are few, so a claim has to hold over both.
    floor, ceiling = min(low, over_rows[0]), max(high, over_rows[1])
    return SetSummary(
        set=name,
        domain=scores[0].domain,
        seeds=len(scores),
        rows=rows,
        different_rows=different,
        mean=mean(accuracies),
        deviation=deviation(accuracies),
        low=max(0.0, low),
        high=min(1.0, high),
        over="seeds" if over_seeds else "rows",
        standing=_written_standing(floor, ceiling)
        if written
        else _standing(floor, ceiling, chance, majority),
        written=written,
        chance=chance,
        majority=majority,
        calibration_error=mean_of(score.calibration_error for score in scores),
        cross_entropy=mean_of(score.cross_entropy for score in scores),
        verbalizer_mass=mean_of(score.verbalizer_mass for score in scores),
        kl=mean_of(f.kl_to_teacher for f in fidelities),
        agreement=mean_of(f.agreement for f in fidelities),
        teacher=mean_of(taught),
        single_contexts=tuple(single.accuracy for s in scores for single in s.single_contexts),
        confusion=confusion,
        predicted=predicted_shares(confusion),
    )


def _standing(low: float, high: float, chance: float, majority: float) -> Standing:
    if low > max(chance, majority):
        return "above"
    if high < min(chance, majority):
        return "below"
    return "at" if high <= max(chance, majority) + NEAR else "unclear"


def _written_standing(low: float, high: float) -> Standing:
    if low > SOLVED:
        return "above"
    return "at" if high <= SOLVED + NEAR else "unclear"


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the values that there are; None where there is none."""
    there = [value for value in values if value is not None]
    return mean(there) if there else None
