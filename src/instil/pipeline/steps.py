"""The steps that every kind of cell has: teach, train, judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from instil.evaluation.drift import drift, drift_pieces
from instil.methods import METHODS, Method
from instil.models.roles import Models
from instil.models.source import resolve
from instil.pipeline.rows import CellRows
from instil.prompts.format import PromptFormat
from instil.recipe.recipe import Recipe
from instil.results.logs import Dropped
from instil.results.recovery import recovery_interval
from instil.results.schema import (
    NO_MATTER,
    EvaluationRow,
    MethodResult,
    PhaseCost,
    Prediction,
    Results,
    RowsFacts,
)
from instil.results.scores import Drift, Interval, SetScore
from instil.results.training import Training
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.environment import ALGORITHM, VERSION
from instil.system.files import digest
from instil.system.progress import Display
from instil.tasks.rows import digest as rows_digest

FIXED_BYTES = 16 * 2**20  # report, predictions, results

Taught = TypeVar("Taught")
Trained = TypeVar("Trained")


@dataclass(frozen=True)
class Judged:
    """The scores of a cell.

    Attributes:
        methods: Results of the recipe's method, then of its baselines.
        predictions: Predictions of all these methods on all sets.
        teacher: Scores of the teacher on the same rows. Classification only, else empty.
        rows: The rows of all sets. Free text only, else empty.
        answered_by: Engine that answered the rows; None: this process.
    """

    methods: list[MethodResult]
    predictions: list[Prediction]
    teacher: list[SetScore]
    rows: list[EvaluationRow] = field(default_factory=list)
    answered_by: str | None = None

    @property
    def recovery_interval(self) -> Interval | None:
        """The interval of recovery on the first set; None without a student, baselines or outputs."""
        student, first = self.methods[0].method, self.methods[0].scores[0].name
        if not METHODS[student].learns:
            return None
        zero_shot, in_context, students = (
            [
                line.score
                for line in self.predictions
                if (line.set, line.method) == (first, name) and line.score is not None
            ]
            for name in ("zero_shot", "in_context", student)
        )
        if not zero_shot or not in_context:
            return None
        found = recovery_interval(zero_shot, in_context, students)
        return found and Interval(low=found[0], high=found[1])


@dataclass(frozen=True)
class Steps(ABC, Generic[Taught, Trained]):
    """A cell with all inputs checked.

    If there are several processes, all of them run the same steps, and the main one writes.

    Attributes:
        recipe: All settings.
        rows: Training and evaluation rows.
        form: Prompt format.
        store: Folder with the predictions of teachers, shared by all cells of a study.
        recorder: Measures the cost of each phase.
        display: Shows progress.
    """

    recipe: Recipe
    rows: CellRows
    form: PromptFormat
    store: Path
    recorder: Recorder
    display: Display

    @property
    def method(self) -> Method:
        """The recipe's method."""
        return METHODS[self.recipe.method]

    @abstractmethod
    def teach(self) -> Taught:
        """Computes what the student learns from, or reads it if it is stored already."""

    @abstractmethod
    def train(self, taught: Taught, folder: Path) -> Trained:
        """Trains the student and saves its weights.

        Args:
            taught: Result of `teach`.
            folder: Folder of the cell.
        """

    @abstractmethod
    def judge(self, taught: Taught, trained: Trained | None) -> Judged:
        """Evaluates all methods on all sets.

        Args:
            taught: Result of `teach`.
            trained: Result of `train`; None if the method does not train.
        """

    def close(self) -> None:
        """Ends what the steps have started."""

    @abstractmethod
    def facts(self, trained: Trained | None) -> dict[str, Any]:
        """Returns the fields of `Results` that only this kind of cell knows.

        Args:
            trained: As for `judge`.
        """

    @abstractmethod
    def training(self, trained: Trained) -> Training:
        """Facts about the training of the student."""

    @abstractmethod
    def example(self) -> str:
        """Returns a query for the code example in the model card."""

    @property
    def left_out(self) -> list[Dropped]:
        """Rows that cannot be used, and were left out."""
        return []

    @property
    def context_text(self) -> str | None:
        """The prompt of the teacher, if all rows have the same context; else None."""
        return None

    @property
    @abstractmethod
    def fingerprints(self) -> list[str]:
        """Fingerprints of the models."""

    @property
    @abstractmethod
    def needed_bytes(self) -> int:
        """Disk space that the folder needs."""

    @cached_property
    def identity(self) -> str:
        """Digest of everything that the results depend on."""
        settings = self.recipe.model_dump(mode="json", exclude=NO_MATTER)
        settings["task"] = {
            name: value
            for name, value in settings["task"].items()
            if name not in self.recipe.task.content_fields()
        }
        if isinstance(self.recipe.evaluation.rules, Path):  # its content counts
            settings["evaluation"]["rules"] = [
                (rule.name, rule.text) for rule in self.recipe.evaluation.ruled()
            ]
        settings["evaluation"]["metrics"] = self.recipe.evaluation.measured_by()
        if isinstance(self.recipe.keep.source, Path):  # its content counts
            del settings["keep"]["source"]
        context = self.rows.context
        return digest(
            {
                "recipe": settings,
                "rows": {name: facts.sha256 for name, facts in self.rows_facts().items()},
                "context": context and context.digest(),
                "keep": self.recipe.keep.digest(),
                "models": self.fingerprints,
                "version": [VERSION, ALGORITHM],
            }
        )

    def _drift(self, models: Models) -> Drift:
        """Measures how much the student has changed on unrelated text, in the main process."""
        most = self.recipe.evaluation.drift_tokens

        def measure() -> Drift:
            pieces = drift_pieces(models.student, most=most)
            with self.display.bar("measuring drift", pieces) as bar:
                advance = self.recorder.advance("evaluate", bar.advance)
                return drift(models, most=most, advance=advance)

        return processes.main_does(measure)

    def rows_facts(self) -> dict[str, RowsFacts]:
        """Number and digest of the training rows and of each evaluation set."""
        drawn = self.rows.drawn
        named = {"training": drawn.training} if self.method.learns else {}
        named |= {held_out.name: held_out.rows for held_out in drawn.sets}
        return {
            name: RowsFacts(rows=len(rows), sha256=rows_digest(rows))
            for name, rows in named.items()
        }

    def results(self, judged: Judged, trained: Trained | None) -> Results:
        """Returns the content of `results.json`. The module `study` adds the name of the cell."""
        recipe = self.recipe
        facts = self.facts(trained)
        teacher: str | None = facts["teacher_model"]
        return Results(
            instil_version=VERSION,
            recipe=recipe.model_dump(mode="json"),
            model=recipe.model,
            model_source=resolve(recipe.model).anywhere,
            teacher_source=teacher and resolve(teacher).anywhere,
            seed=recipe.seed,
            task=recipe.task.name,
            rows=self.rows_facts(),
            methods=judged.methods,
            teacher=judged.teacher,
            recovery_interval=judged.recovery_interval,
            answered_by=judged.answered_by,
            training=None if trained is None else self.training(trained),
            phases={
                name: PhaseCost(**asdict(cost)) for name, cost in self.recorder.costs().items()
            },
            reused=sorted(self.recorder.reused),
            left_out=self.rows.drawn.left_out,
            **facts,
        )
