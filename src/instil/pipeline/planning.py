"""What a run will need, foretold from a small part of it: time, tokens and memory of each phase.

The part is the run itself with few rows and few steps: the same functions, the same batches of
training, the same texts. It runs with two numbers of rows. The difference is what a row costs, and
the rest is what does not depend on the rows, such as reading the context. So nothing here repeats
how a phase works.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeVar

from instil.errors import ConfigError
from instil.evaluation.drift import drift_pieces
from instil.evaluation.retention import KINDS, prompts_by_kind
from instil.methods import METHODS, Phase
from instil.models.roles import Models
from instil.pipeline.given import Given
from instil.pipeline.text import TextSteps
from instil.prompts.rendered import RenderedRows
from instil.recipe.canonical import methods_of
from instil.recipe.recipe import Recipe
from instil.system import processes
from instil.system.costs import Cost, Recorder
from instil.system.progress import Display
from instil.system.sequences import Computed
from instil.tasks.split import watched_rows

STEPS, FIRST = 6, 3
"""Steps of training that are run, and those of them that are slower: they find out what the model
can do at once."""
FEW, MANY = 8, 24
"""Rows or conversations with which a phase is run, on a processor. With fewer rows, each takes
longer."""
DRIFT = 1
"""Tokens of each kind of unrelated text that are asked for in the part: one piece is read."""
CARD_OVERHEAD = 1.0
"""GiB that the driver and the libraries take on an accelerator."""
OPTIMISER_BYTES = 16
"""Bytes of a trained weight: itself, its gradient, and the two means of AdamW, in float32."""

ORDER: tuple[Phase, ...] = ("load", "generate", "teach", "train", "evaluate")

T = TypeVar("T")


@dataclass(frozen=True)
class PhasePlan:
    """What a phase will need.

    Attributes:
        seconds: Wall time.
        tokens: Token positions that the models compute.
        memory_mb: Peak memory in MiB: of the process on a processor, of the models on an
            accelerator.
        most_seconds: Wall time of the most steps, if training ends by itself; else the same.
    """

    seconds: float
    tokens: float
    memory_mb: float
    most_seconds: float


@dataclass(frozen=True)
class Foretold:
    """What a run will need.

    Attributes:
        phases: Phase -> what it will need.
        rows: Numbers of training rows and of evaluation rows.
        steps: Steps of a training of fixed length, and the most, if it ends by itself.
        answer_tokens: Mean length of the known answers; None if there are none.
        weights_gib: Size of the models' weights, in GiB.
        working_gib: Peak memory of the largest phase beyond the weights, in GiB.
        parameters: Weights of the models, and how many of them are trained.
        probe_seconds: How long the part took.
    """

    phases: dict[Phase, PhasePlan]
    rows: tuple[int, int]
    steps: tuple[int, int]
    answer_tokens: float | None
    weights_gib: float
    working_gib: float
    parameters: tuple[int, int]
    probe_seconds: float

    @property
    def seconds(self) -> tuple[float, float]:
        """Wall time of the whole run: with the fixed number of steps, and with the most."""
        of = self.phases.values()
        return sum(one.seconds for one in of), sum(one.most_seconds for one in of)

    def on_card(self, gigabytes: float) -> tuple[float, bool]:
        """The GiB that the run needs on an accelerator, in bfloat16, and whether they fit.

        Args:
            gigabytes: Memory of the accelerator, in GB as its maker counts it.
        """
        needed = self.weights_gib + self.working_gib + CARD_OVERHEAD
        return needed, needed <= gigabytes * 1e9 / 2**30


def foretell(recipe: Recipe, *, given: Given | None = None, display: Display) -> Foretold:
    """Runs a small part of a run, and says what all of it will need.

    What the base writes for `keep`, and a few of its general answers, are kept for the run.

    Args:
        recipe: All settings. The answers are free text, and the teacher is in this process.
        given: Rows and context. They replace the files that the task `files` names.
        display: Shows progress.

    Raises:
        ConfigError: the answers are labels, the method does not train, or an engine teaches.
        InstilError: the input, the models or the machine do not allow the run.
    """
    if recipe.task.answers != "text" or METHODS[recipe.method].learns is None:
        raise ConfigError(
            "only a training with free-text answers can be foretold",
            got=f"task {recipe.task.name}, method {recipe.method}",
            mend="name a recipe of this kind",
        )
    if processes.count() > 1:
        raise ConfigError(
            "one process plans for all", got=f"{processes.count()} processes", mend="start one"
        )
    if recipe.teacher.engine is not None:
        raise ConfigError(
            "what an engine needs cannot be foretold from this process",
            got=f"teacher.engine: {recipe.teacher.engine.name}",
            mend="plan without teacher.engine",
        )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        steps = TextSteps.prepare(recipe, store=Path(name), display=display, given=given)
        return _Probe(steps, Path(name), start).foretold()


class _Clock(Recorder):
    """A recorder that remembers when each step ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[float] = []

    def count(self, name: Phase, *, tokens: int = 0, steps: int = 0) -> None:
        if name == "train" and steps:
            self.ended.append(time.perf_counter())
        super().count(name, tokens=tokens, steps=steps)


@dataclass(frozen=True)
class _Probe:
    """A small part of a run.

    Attributes:
        whole: The run, prepared.
        folder: Where the part writes.
        start: When the probe began, by `time.perf_counter`.
    """

    whole: TextSteps
    folder: Path
    start: float

    def foretold(self) -> Foretold:
        """Runs the part, and foretells the rest."""
        idle = Recorder()
        with idle.phase("load"):  # the memory of a process that has loaded the models
            pass
        loaded = _peak(idle.costs()["load"])
        loading = self.whole.recorder.costs()["load"]
        phases: dict[Phase, PhasePlan] = {
            "load": PhasePlan(loading.wall_seconds, 0, loaded, loading.wall_seconds)
        }
        few, many = self._sizes([self.whole.learnt])
        training = self.whole.recipe.training
        step = training.batch_size * training.grad_accumulation
        many = -(-many // step) * step  # each step has as many rows as those of the run
        self._taught(many)  # finds out once whether rows can share a pass, and is not counted
        taught = [self._taught(few), self._taught(many)]
        sizes = [len(part.learnt.rows) for part in taught]
        for name in ("generate", "teach"):
            phases |= self._line(name, sizes, taught, self._rows)
        phases["train"], steps, student = self._trained(taught[-1])
        phases |= self._judged(student, phases.get("generate"))
        models = self.whole.models
        both = {id(model): model for model in (models.student, models.teacher)}.values()
        weights = [weight for model in both for weight in model.network.parameters()]
        network: Any = models.student.network
        own, known = network.get_nb_trainable_parameters()
        frozen = sum(
            weight.numel() * min(2, weight.element_size())
            for weight in weights
            if not weight.requires_grad
        )
        working = max(one.memory_mb for one in phases.values()) - loaded
        width = max(1, models.student.network.dtype.itemsize // 2)
        answers = [len(ids) for _, rows in self.whole.sets for ids in rows.gold if ids]
        return Foretold(
            phases={name: phases[name] for name in ORDER if name in phases},
            rows=(self._rows, sum(len(rows.rows) for _, rows in self.whole.sets)),
            steps=steps,
            answer_tokens=mean(answers) if answers else None,
            weights_gib=(frozen + OPTIMISER_BYTES * own) / 2**30,
            working_gib=max(0.0, working) / width / 1024,
            parameters=(known, own),
            probe_seconds=time.perf_counter() - self.start,
        )

    @property
    def _rows(self) -> int:
        """Rows to learn from, with those that will be made."""
        return len(self.whole.learnt.rows) + self.whole.recipe.training.make_inputs

    @property
    def _lessons(self) -> tuple[int, int]:
        """Lessons of the training, and those of them that are held out."""
        recipe, rows = self.whole.recipe, self.whole.learnt.rows
        apart = set[int]()
        if recipe.training.until is not None:
            apart = watched_rows(rows, seed=f"{recipe.seed} held out")
        alone = [n for n, row in enumerate(rows) if row.conversation is None]
        together = {row.conversation for row in rows} - {None}
        held = {rows[n].conversation for n in apart} - {None}
        made, samples = recipe.training.make_inputs, recipe.teacher.samples
        count = (len(alone) + made) * samples + len(together)
        return count, len({*alone} & apart) * samples + len(held)

    @property
    def _unit(self) -> int:
        """An accelerator computes batches, and a batch takes as long whatever its rows."""
        on_processor = self.whole.models.student.device.type == "cpu"
        return 1 if on_processor else self.whole.recipe.evaluation.batch_size

    def _times(self, rows: int, measured: int) -> float:
        """How many times longer some rows take than others."""
        units, known = (-(-number // self._unit) for number in (rows, measured))
        return units / known

    def _sizes(self, sets: Sequence[RenderedRows]) -> tuple[int, int]:
        """Two numbers of rows of each set."""
        few, many = (FEW, MANY) if self._unit == 1 else (self._unit, 2 * self._unit)
        most = max(len(rows.rows) for rows in sets)
        return min(few, most), min(many, most)

    def _part(self, rows: int, models: Models | None = None) -> TextSteps:
        """The run with few rows and steps, and a store of its own."""
        recipe = self.whole.recipe
        short = {"max_steps": STEPS, "epochs": None, "until": None, "make_inputs": 0}
        quick = {"drift_tokens": DRIFT, "general_prompts": len(KINDS), "at_steps": None}
        changes = {
            "training": recipe.training.model_copy(update=short),
            "evaluation": recipe.evaluation.model_copy(update=quick),
            "teacher": recipe.teacher.model_copy(update={"store": None}),
            "student": recipe.student.model_copy(update={"save": False}),
        }
        sets = [(of, _some(found, rows)) for of, found in self.whole.sets]
        return replace(
            self.whole,
            recipe=recipe.model_copy(update=changes),
            store=Path(tempfile.mkdtemp(dir=self.folder)),
            recorder=_Clock(),
            learnt=_some(self.whole.learnt, rows),
            sets=[(replace(of, rows=found.rows), found) for of, found in sets],
            validation=None,
            models=models or self.whole.models,
        )

    def _line(
        self, name: Phase, sizes: Sequence[int], parts: Sequence[TextSteps], rows: int
    ) -> dict[Phase, PhasePlan]:
        """What a phase will need for a number of rows; nothing if the run has no such phase."""
        found = [part.recorder.costs().get(name) for part in parts]
        costs = [cost for cost in found if cost is not None]
        if len(costs) < len(parts):
            return {}
        (few, many), (one, two) = sizes, costs
        batches = [-(-number // self._unit) for number in (few, many, rows)]
        if batches[0] == batches[1]:
            seconds, tokens = two.wall_seconds * batches[2] / batches[1], two.tokens * rows / many
        else:
            share = (batches[2] - batches[0]) / (batches[1] - batches[0])
            each = max(0.0, two.wall_seconds - one.wall_seconds)
            seconds = max(0.0, one.wall_seconds + share * each)
            tokens = one.tokens + (rows - few) / max(1, many - few) * (two.tokens - one.tokens)
        return {name: PhasePlan(seconds, tokens, _peak(two), seconds)}

    def _taught(self, rows: int) -> TextSteps:
        """A part whose teacher has written and scored."""
        part = self._part(rows)
        part.teach()
        return part

    def _trained(self, part: TextSteps) -> tuple[PhasePlan, tuple[int, int], Models]:
        """What training will need, its steps, and models with a trained student."""
        settings, clock = self.whole.recipe.training, part.recorder
        models = part.train(part.teach(), part.store).models
        cost = clock.costs()["train"]
        assert isinstance(clock, _Clock)
        usual = clock.ended[FIRST - 1 :]
        step = median(after - now for now, after in itertools.pairwise(usual))
        once = max(0.0, cost.wall_seconds - STEPS * step)
        lessons, held = self._lessons
        fixed = most = settings.steps(lessons - held)
        if held:
            most = settings.most_steps(lessons - held)
            # They are read every 10 steps, which takes a third of learning from them.
            step *= 1 + held / (settings.batch_size * settings.grad_accumulation) / 30
        seconds = [once + step * steps for steps in (fixed, most)]
        plan = PhasePlan(seconds[0], cost.tokens / STEPS * fixed, _peak(cost), seconds[1])
        return plan, (fixed, most), models

    @property
    def _checkpoints(self) -> int:
        """How often the student is judged during training."""
        at_steps = self.whole.recipe.evaluation.at_steps
        if not isinstance(at_steps, int):
            return 1 + len(at_steps or ())
        lessons, _ = self._lessons
        return 2 + self.whole.recipe.training.steps(lessons) // at_steps

    def _judged(self, models: Models, writing: PhasePlan | None) -> dict[Phase, PhasePlan]:
        """What evaluation will need, and what the teacher will write with the answers to its rows.

        Args:
            models: Teacher and student, which is trained.
            writing: What the teacher will write for the training rows.
        """
        settings, names = self.whole.recipe.evaluation, methods_of(self.whole.recipe)
        sets = [rows for _, rows in self.whole.sets]
        few, many = self._sizes(sets)

        def judge(part: TextSteps) -> None:
            for held_out, rows in part.sets:
                part.judging.set(held_out, rows, part.judging.written(held_out, rows, names))

        def ask(part: TextSteps) -> None:
            for name in names:
                part.judging.seconds(name, part.sets[0][1], tokens=1.0)
                part.judging.seconds_warm(name, part.sets[0][1], tokens=1.0)

        def measured(rows: int, work: Callable[[TextSteps], object]) -> TextSteps:
            part = self._part(rows, models)
            with part.recorder.phase("evaluate"):
                work(part)
            return part

        def judged(rows: int) -> TextSteps:
            part = self._part(rows, models)
            for _, of in part.sets:  # the teacher writes before the phase begins
                part.judging.held_out(of)
            with part.recorder.phase("evaluate"):
                judge(part)
            return part

        judged(many)  # as above
        parts = [judged(few), judged(many)]
        sizes = [sum(len(rows.rows) for _, rows in part.sets) for part in parts]
        total = sum(len(rows.rows) for rows in sets)
        found = self._line("evaluate", sizes, parts, total)["evaluate"]
        written = self._line("generate", sizes, parts, total).get("generate")
        wanted = (settings.drift_tokens, DRIFT)
        pieces, piece = (drift_pieces(models.student, most=most) for most in wanted)
        asked = sum(map(len, prompts_by_kind(settings.general_prompts).values()))
        more: list[tuple[Callable[[TextSteps], object], float]] = [
            (lambda part: part._drift(models), pieces / piece),
            (lambda part: part.judging.retention(), self._times(asked, len(KINDS))),
            (ask, 1.0),
        ]
        if (validation := self.whole.validation) is not None:
            some = _some(validation, few)
            times = self._times(len(validation.rows), len(some.rows)) * self._checkpoints
            more.append((lambda part: part.judging.checkpoint(some, 0), times))
        for work, times in more:
            cost = measured(few, work).recorder.costs()["evaluate"]
            found = _sum(found, cost.wall_seconds * times, cost.tokens * times, _peak(cost))
        made: dict[Phase, PhasePlan] = {"evaluate": found}
        if written is not None:
            before = writing or PhasePlan(0, 0, 0, 0)
            made["generate"] = _sum(before, written.seconds, written.tokens, written.memory_mb)
        return made


def _sum(plan: PhasePlan, seconds: float, tokens: float, memory_mb: float) -> PhasePlan:
    return PhasePlan(
        plan.seconds + seconds,
        plan.tokens + tokens,
        max(plan.memory_mb, memory_mb),
        plan.most_seconds + seconds,
    )


def _peak(cost: Cost) -> float:
    return cost.peak_rss_mb if cost.peak_allocated_mb is None else cost.peak_allocated_mb


def _some(rows: RenderedRows, count: int) -> RenderedRows:
    """Some rows and conversations of a set, from everywhere in it."""
    groups: dict[object, list[int]] = {}
    for number, row in enumerate(rows.rows):
        of = row.conversation
        groups.setdefault(("row", number) if of is None else of, []).append(number)
    known = [*groups.values()]
    count = min(count, len(known))
    chosen = sorted(n for place in range(count) for n in known[place * len(known) // count])

    def picked(of: Sequence[T]) -> Sequence[T]:
        return Computed.picked(of, chosen)

    return replace(
        rows,
        rows=[*picked(rows.rows)],
        teacher_prompts=picked(rows.teacher_prompts),
        student_prompts=picked(rows.student_prompts),
        gold=picked(rows.gold),
    )
