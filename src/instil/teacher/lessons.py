"""The teacher's stored targets, and the rows that training reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from instil.engines.started import Started, identity
from instil.losses import Objective
from instil.models.cache import alike
from instil.models.forward import output_embeddings
from instil.models.load import LanguageModel
from instil.models.roles import Models
from instil.prompts.pair import AlignedPair, teacher_prompts
from instil.recipe.canonical import selection_of
from instil.recipe.recipe import Recipe
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.environment import ALGORITHM
from instil.system.files import digest_ids
from instil.system.progress import Advance, Display
from instil.system.sequences import Computed
from instil.targets.prediction import TargetRow, Targets
from instil.targets.selection import Selection
from instil.targets.store import StorePlan, TargetStore, build
from instil.teacher.hidden_states import OnlineTeacher
from instil.teacher.logged import Logged
from instil.teacher.scorer import Scorer


@dataclass(frozen=True)
class Teaching:
    """The teacher of a run.

    Attributes:
        recipe: The recipe.
        models: Teacher and student.
        recorder: Counts the teacher's cost.
        display: Shows progress.
        engine: Scores in place of the teacher's model; None: the model itself.
        logged: Predictions that stand in the rows, in place of the teacher's; None: it makes them.
    """

    recipe: Recipe
    models: Models
    recorder: Recorder
    display: Display
    engine: Started | None = None
    logged: Logged | None = None

    @property
    def kept(self) -> Selection:
        """Which outcomes per token the targets store."""
        return selection_of(self.recipe.teacher, self.recipe.objective)

    @property
    def vocabulary(self) -> int:
        """Number of outcomes; see `vocabulary_of`."""
        return vocabulary_of(self.models.student)

    def fingerprint(self, pairs: Sequence[AlignedPair]) -> str:
        """A fingerprint of all that the teacher's targets for these pairs depend on."""
        model, temperature = self.models.teacher, self.recipe.objective.temperature
        outcomes = [self.vocabulary, self.kept.model_dump(), *self._made_by]
        settings = [ALGORITHM, model.fingerprint, model.dtype, temperature, *outcomes]
        return digest_ids(
            settings, (ids for pair in pairs for ids in (pair.teacher_prompt, pair.completion))
        )

    def lessons(
        self,
        pairs: Sequence[AlignedPair],
        objective: Objective,
        store: Path,
    ) -> Lessons:
        """The rows that training reads, with the teacher's targets.

        Targets are computed once, for all runs that share the store.

        Args:
            pairs: The pairs to learn from.
            objective: The loss.
            store: Folder of target stores if the recipe sets none.
        """
        online = objective.needs_hidden_states
        if not objective.needs_targets:
            return Lessons(pairs, None, [], teacher_prompts=online)
        order = in_store(pairs)
        stored = self._stored(Computed.picked(pairs, order), store)
        places = sorted(range(len(order)), key=order.__getitem__)
        return Lessons(pairs, stored, places, teacher_prompts=online)

    def online(self, pairs: Sequence[AlignedPair], objective: Objective) -> OnlineTeacher | None:
        """A teacher that runs during training; None if the loss does not need one."""
        if not objective.needs_hidden_states:
            return None
        prompts = teacher_prompts(pairs)
        return OnlineTeacher.of(self.models.teacher, prompts, lambda: self.models.adapter(on=False))

    def planned(self, pairs: Sequence[AlignedPair], store: Path) -> tuple[Path, StorePlan]:
        """The folder of a target store and its content.

        Args:
            pairs: The pairs, in the order in which they are stored.
            store: Folder of target stores if the recipe sets none.
        """
        fingerprint = self.fingerprint(pairs)
        return (self.recipe.teacher.store or store) / fingerprint[:32], StorePlan(
            fingerprint=fingerprint,
            lengths=[len(pair.completion) for pair in pairs],
            vocabulary=self.vocabulary,
            temperature=self.recipe.objective.temperature,
            kept=self.kept,
            teacher=", ".join(
                [self.models.teacher.name, self.models.teacher.dtype, *self._made_by]
            ),
        )

    @property
    def _made_by(self) -> list[str]:
        """What tells these targets from those of the teacher's model in this process."""
        return identity(self.engine) if self.logged is None else ["logged", self.logged.digest]

    def _stored(self, pairs: Sequence[AlignedPair], store: Path) -> TargetStore:
        path, plan = self.planned(pairs, store)
        measured = Recorder()
        costs = path.with_name(path.name + ".spent.json")
        measured.keep_at(costs)
        asked: list[int] = []
        with (
            self.models.adapter(on=False),
            self.display.bar("teacher scores completions", len(pairs)) as bar,
        ):
            advance = measured.advance("teach", bar.advance)
            predicted = self.predictions(pairs, plan, advance)

            def score(numbers: Sequence[int]) -> Iterator[tuple[int, list[int], Targets]]:
                if asked:  # the shard before this one is stored
                    measured.keep()
                asked.extend(numbers)
                with measured.phase("teach"):
                    for number, targets in predicted(numbers):
                        yield number, pairs[number].completion, targets

            built = build(path, plan=plan, score=score, advance=lambda rows, _: bar.advance(rows))
        measured.add_other_processes()
        if asked:
            measured.keep()
        if processes.is_main():
            known = measured
            if not asked:  # another run may have built the store while this run waited
                known = Recorder()
                known.keep_at(costs)
            # `put` replaces: a resumed run has already counted part of this total cost.
            self.recorder.put("teach", known.spent("teach"))
        if not asked:
            self.recorder.reused.add("teach")
        return built

    def predictions(
        self, pairs: Sequence[AlignedPair], plan: StorePlan, advance: Advance
    ) -> Callable[[Sequence[int]], Iterator[tuple[int, Targets]]]:
        """What gives the targets of pairs with certain numbers. An adapter must be off.

        Args:
            pairs: All pairs, in the order in which they are stored.
            plan: The content of their store.
            advance: Is called with the progress.
        """
        if (logged := self.logged) is not None:

            def of_rows(numbers: Sequence[int]) -> Iterator[tuple[int, Targets]]:
                for number in numbers:
                    pair = pairs[number]
                    advance(1, len(pair.completion))
                    yield number, logged.targets(pair.row, pair.completion, plan.kept)

            return of_rows
        if self.engine is None:
            scorer = Scorer.of(
                self.models.teacher,
                pairs,
                vocabulary=plan.vocabulary,
                kept=plan.kept,
                temperature=plan.temperature,
                batch_size=self.recipe.evaluation.batch_size,
                advance=advance,
            )
            return scorer.score
        started = self.engine

        def of_engine(numbers: Sequence[int]) -> Iterator[tuple[int, Targets]]:
            asked = [(pairs[n].teacher_prompt, pairs[n].completion) for n in numbers]
            for place, targets in started.engine.scored(
                asked, plan.kept, vocabulary=plan.vocabulary
            ):
                advance(1, len(asked[place][1]))
                yield numbers[place], targets

        return of_engine


def vocabulary_of(student: LanguageModel) -> int:
    """Number of a student's outcomes: the size of its output layer, with padding."""
    return int(cast(Any, output_embeddings(student.network)).weight.shape[0])


def in_store(pairs: Sequence[AlignedPair]) -> list[int]:
    """The order in which pairs are stored: those of a context together, so that it is read once."""
    return [number for group in alike(teacher_prompts(pairs)) for number in group]


@dataclass(frozen=True)
class Lessons(Sequence[TargetRow]):
    """Pairs with their targets, which are read from the store when needed.

    Attributes:
        pairs: The pairs to learn from.
        store: Store of the targets; None if they are not needed.
        places: Index of each pair's targets in the store.
        teacher_prompts: Whether to include the teacher prompts, for a teacher during training.
    """

    pairs: Sequence[AlignedPair]
    store: TargetStore | None
    places: Sequence[int]
    teacher_prompts: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        pair = self.pairs[index]
        return TargetRow(
            row=pair.row,
            student_prompt=pair.student_prompt,
            completion=pair.completion,
            targets=None if self.store is None else self.store[self.places[index]].targets,
            teacher_prompt=pair.teacher_prompt if self.teacher_prompts else None,
        )


@dataclass(frozen=True)
class Together:
    """Lessons that are read together: the turns of a conversation, which share its history.

    Attributes:
        rows: The lessons.
    """

    rows: list[TargetRow]

    @property
    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """Each lesson's prompt and completion, in token ids."""
        return [pair for row in self.rows for pair in row.sequences]

    @property
    def terms(self) -> int:
        """Number of completion tokens."""
        return sum(row.terms for row in self.rows)

    @property
    def targets(self) -> Targets | None:
        """The targets of all lessons, one after another."""
        known = [row.targets for row in self.rows if row.targets is not None]
        return Targets.cat(known) if known else None

    @property
    def teacher_prompt(self) -> None:
        """None: lessons that are read together have no teacher during the training."""
        return None


@dataclass(frozen=True)
class Grouped(Sequence[TargetRow | Together]):
    """Lessons, of which those of one conversation are one.

    Attributes:
        lessons: All lessons.
        groups: Numbers of the lessons that are read together.
    """

    lessons: Lessons
    groups: list[list[int]]

    @classmethod
    def of(cls, lessons: Lessons, conversations: Sequence[int | None]) -> Grouped:
        """Groups neighbouring lessons of one conversation.

        A teacher during the training needs each lesson alone.

        Args:
            lessons: All lessons.
            conversations: For each lesson, what tells its conversation from others; None for a
                single turn.
        """
        groups: list[list[int]] = []
        for number, one in enumerate(conversations):
            alike = number > 0 and one is not None and conversations[number - 1] == one
            if alike and not lessons.teacher_prompts:
                groups[-1].append(number)
            else:
                groups.append([number])
        return cls(lessons, groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: Any) -> Any:
        rows = [self.lessons[number] for number in self.groups[index]]
        return rows[0] if len(rows) == 1 else Together(rows)
