"""The steps of a cell with free-text answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, cast

from transformers import set_seed

from instil.engines.engine import Wanted
from instil.engines.started import Started, check_start, chosen
from instil.evaluation.answers import Answered
from instil.losses import CrossEntropy, Objective
from instil.methods import METHODS, MethodName
from instil.metrics import comparing
from instil.models.roles import Models
from instil.models.tuning import LoRA
from instil.pipeline.checkpoints import Watch, held_out
from instil.pipeline.folder import CHECKPOINTS, SCRATCH
from instil.pipeline.form import form_of
from instil.pipeline.given import Given, needs_gold
from instil.pipeline.inputs import with_made_inputs, write_made
from instil.pipeline.judging import Judging
from instil.pipeline.keeping import kept_texts
from instil.pipeline.predictions import evaluated
from instil.pipeline.record import ADAPTER, context_facts, sent_prompt
from instil.pipeline.rendering import Rendering
from instil.pipeline.rows import CellRows
from instil.pipeline.steps import FIXED_BYTES, Judged, Steps
from instil.prompts.pair import AlignedPair
from instil.prompts.rendered import RenderedRows, completion_limit
from instil.prompts.windows import Windows
from instil.recipe.canonical import methods_of, selection_of
from instil.recipe.recipe import Recipe
from instil.recipe.sections import Engine
from instil.results.logs import Dropped
from instil.results.schema import MethodResult, Prediction
from instil.results.scores import SetScore
from instil.results.training import Checkpoint, HeldOutLoss, LoggedTargets, Training
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.progress import Display
from instil.tasks.files import Files
from instil.tasks.free_text import FreeText
from instil.tasks.rows import Row
from instil.tasks.split import EvaluationSet, watched_rows
from instil.teacher.completions import Writer
from instil.teacher.inputs import Made
from instil.teacher.lessons import Grouped, Teaching, vocabulary_of
from instil.teacher.logged import Logged
from instil.training import callbacks, launch, trainer

VALIDATION = "validation rows"


@dataclass(frozen=True)
class Taught:
    """What the student learns from.

    Attributes:
        lessons: Pairs with their targets; those of one conversation are one lesson.
        held_out: Numbers of the lessons that are measured during training, and not learnt.
        truncated: Number of the teacher's completions that reached the length limit.
        made: Inputs that the teacher wrote; None if none were asked for.
        logged: How much of the targets stood in the rows; None if the teacher made them.
    """

    lessons: Grouped
    held_out: list[int]
    truncated: int
    made: Made | None
    logged: LoggedTargets | None


@dataclass(frozen=True)
class Trained:
    """A trained student.

    Attributes:
        models: Teacher and student. A single process can run the student.
        training: Facts about its training.
        adapter: Folder of its adapter, if it is saved.
    """

    models: Models
    training: Training
    adapter: Path


@dataclass(frozen=True)
class TextSteps(Steps[Taught | None, Trained]):
    """A cell with all rows rendered. All rows fit the windows of the models."""

    models: Models
    learnt: RenderedRows
    validation: RenderedRows | None
    sets: list[tuple[EvaluationSet, RenderedRows]]
    max_new_tokens: int
    dropped: list[Dropped] = field(default_factory=list)
    engine: Started | None = None

    @classmethod
    def prepare(
        cls, recipe: Recipe, *, store: Path, display: Display, given: Given | None = None
    ) -> TextSteps:
        """Draws and renders the rows, loads the models, and refuses rows that do not fit them."""
        method = METHODS[recipe.method]
        if isinstance(recipe.evaluation.engine, Engine):
            check_start(recipe.evaluation.engine)
        callbacks.check_tensorboard(recipe.training)
        [*map(comparing, recipe.evaluation.metrics)]  # refused before a model is loaded
        if method.learns:
            launch.check(recipe.training, recipe.objective, recipe.evaluation.at_steps)
        recorder = Recorder()
        with recorder.phase("load"):
            rows = CellRows.of(recipe, given)
            given = rows.given
            if given is not None and given.facts is not None:
                display.note(given.facts.sentence())
            models = load_models(recipe, display)
        form = form_of(recipe, models.student)
        render = Rendering(recipe, rows, models, form)
        own, drawn = isinstance(recipe.task, Files), rows.drawn
        learnt = render.rows(
            "input" if own else "training row",
            drawn.training,
            gold=not own or needs_gold(recipe),
        )
        if needs_gold(recipe):
            learnt.need_gold()
        validation = None
        if method.learns and drawn.validation:
            validation = render.rows(VALIDATION, drawn.validation)
        sets = [render.of_set(held_out) for held_out in drawn.sets]
        answered = [of_set for _, of_set in sets] + ([validation] if validation else [])
        asked = [*answered, *([learnt] if method.learns else [])]
        known = [len(ids) for ids in learnt.gold if ids]
        if rows.context is not None:  # the inputs may have no outputs, so other answers count too
            demonstrations = rows.context.demonstrations
            known += [len(form.completion_ids(row)) for row in demonstrations]
            known += [len(ids) for _, of_set in sets for ids in of_set.gold if ids]
        limit = recipe.teacher.max_new_tokens or completion_limit(
            asked, known, render.windows, thinks=form.thinks is not None
        )
        for of_set in answered:
            of_set.check(limit, render.windows)
        if method.learns:
            learnt.check(limit if recipe.teacher.completions == "teacher" else 0, render.windows)
        render.checks.tell(display)
        engine = None
        if (settings := recipe.teacher.engine) is not None:
            outcomes = selection_of(recipe.teacher, recipe.objective).top_k
            prompts = answered[0].teacher_prompts
            engine = Started(Wanted(settings, models.teacher, outcomes, None, prompts, display))
        steps = cls(
            recipe=recipe,
            rows=rows,
            store=store,
            recorder=recorder,
            display=display,
            models=models,
            form=form,
            learnt=learnt,
            validation=validation,
            sets=sets,
            max_new_tokens=limit,
            dropped=[*(given.dropped if given else []), *render.dropped],
            engine=engine,
        )
        if (logged := steps.teaching.logged) is not None:
            logged.check(learnt.gold_of_rows())
        return steps

    @property
    def task(self) -> FreeText:
        """The task, which decides whether an answer is right."""
        return cast(FreeText, self.recipe.task)

    def example(self) -> str:
        """See `Steps.example`."""
        return self.sets[0][0].rows[0].input

    @property
    def left_out(self) -> list[Dropped]:
        """See `Steps.left_out`."""
        return self.dropped

    @property
    def context_text(self) -> str | None:
        """See `Steps.context_text`."""
        context = self.rows.context
        return None if context is None else self.form.text("{input}", context)

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints and dtypes of teacher and student."""
        both = (self.models.teacher, self.models.student)
        return [text for model in both for text in (model.fingerprint, model.dtype)]

    @property
    def needed_bytes(self) -> int:
        """Space for the adapter, two checkpoints with optimiser states, and the largest targets."""
        rows = len(self.learnt.rows) + self.recipe.training.make_inputs
        longest = rows * self.recipe.teacher.samples * self.max_new_tokens
        selection = selection_of(self.recipe.teacher, self.recipe.objective)
        per_token = selection.token_bytes(self.teaching.vocabulary)
        stored = longest * per_token if self.recipe.objective.needs_targets else 0
        parameters = self.models.student.network.parameters()
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        return FIXED_BYTES + trainable * 4 * 7 + stored

    def teach(self) -> Taught | None:
        """Lets the teacher write and score completions; None if the method does not train."""
        if self.method.learns is None:
            return None
        rows, made = with_made_inputs(self)
        pairs, truncated = self.pairs(rows)
        apart: set[int] = set()
        if self.recipe.training.until:
            apart = watched_rows(rows.rows, seed=f"{self.recipe.seed} held out")
        lessons = Grouped.of(
            self.teaching.lessons(pairs, self._objective, self.store),
            [rows.rows[pair.row].conversation for pair in pairs],
        )
        held_out = [number for number, of in enumerate(lessons.groups) if pairs[of[0]].row in apart]
        if self.engine is not None:
            self._answer_held_out(self.engine)
        covered = None
        if (logged := self.teaching.logged) is not None:
            learnt = (pair for pair in pairs if pair.row not in apart)
            covered = logged.counted((pair.row, pair.completion) for pair in learnt)
        return Taught(lessons, held_out, truncated, made, covered)

    def pairs(self, rows: RenderedRows) -> tuple[Sequence[AlignedPair], int]:
        """What the student learns: prompts with completions, and how many of these were cut.

        Args:
            rows: The training rows.
        """
        truncated = 0
        if self.method.learns == "labels":
            completions = rows.gold_of_rows()
        else:
            completions, truncated = self.writer.learnt(rows, max_new_tokens=self.max_new_tokens)
        if self.method.context_in_training:
            rows = replace(rows, student_prompts=rows.teacher_prompts)
        windows = Windows.of(self.models.teacher, self.models.student)
        return rows.pairs(completions, windows), truncated

    def _answer_held_out(self, engine: Started) -> None:
        """Lets the teacher answer the held-out rows, and ends the engine: training needs its memory."""
        uncounted = replace(self.writer, recorder=Recorder())  # they are counted when they are read
        for _, rows in self.sets:
            replace(self.judging, writer=uncounted, _held_out={}).held_out(rows)
        engine.close()

    def close(self) -> None:
        """See `Steps.close`."""
        if self.engine is not None:
            self.engine.close()

    def train(self, taught: Taught | None, folder: Path) -> Trained:
        """Trains the student and saves its weights."""
        assert taught is not None
        lessons, student = taught.lessons, self.models.student
        network: Any = student.network
        observe, judged, watched = None, None, None
        if self.validation is not None:
            judged = Watch(network, Checkpoint, folder / SCRATCH)
            rows = self.validation
            observe = judged.observed(lambda step: self.judging.checkpoint(rows, step))
        elif taught.held_out:
            watched = Watch(network, HeldOutLoss, folder / SCRATCH)
        kept = kept_texts(self, lambda: student)
        set_seed(self.recipe.seed)
        with self.recorder.phase("train"):
            report = trainer.train(
                network,
                lessons,
                objective=self._objective,
                settings=self.recipe.training,
                seed=self.recipe.seed,
                pad_id=student.pad_id,
                checkpoints=folder / CHECKPOINTS,
                advance=lambda steps, tokens: self.recorder.count(
                    "train", tokens=tokens, steps=steps
                ),
                display=self.display,
                online=self.teaching.online(lessons.lessons.pairs, self._objective),
                kept=kept,
                observe=observe,
                at_steps=self.recipe.evaluation.at_steps,
                held_out=held_out(watched, taught.held_out) if watched else None,
                curves=folder / callbacks.CURVES,
                saved=self.recorder.keep,
            )
        learnt = [
            lessons.lessons.pairs[n]
            for number, of in enumerate(lessons.groups)
            if number not in taught.held_out
            for n in of
        ]
        trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
        training = Training(
            rows=len(learnt),
            tokens=sum(len(pair.completion) for pair in learnt),
            truncated_completions=taught.truncated,
            made_inputs=taught.made and taught.made.facts,
            logged_targets=taught.logged,
            steps=report.steps,
            trainable_parameters=trainable,
            trainable_share=trainable / sum(p.numel() for p in network.parameters()),
            loss=report.loss,
            checkpoints=judged.keep_best() if judged else [],
            held_out_rows=len(taught.held_out),
            held_out=watched.keep_best() if watched else [],
            ended=report.ended,
        )
        if taught.made is not None:
            made = taught.made
            processes.main_does(lambda: write_made(made, folder))
        models = self.models.made_whole(lambda: load_models(self.recipe, self.display))
        place = folder if self.recipe.student.save else folder / SCRATCH
        if self.recipe.student.save or self.recipe.evaluation.engine is not None:
            trained: Any = models.student.network
            processes.main_does(lambda: self.recipe.tuning.save(trained, place))
        return Trained(models, training, place / ADAPTER)

    def training(self, trained: Trained) -> Training:
        """Facts about the training of the student."""
        return trained.training

    def judge(self, taught: Taught | None, trained: Trained | None) -> Judged:
        """Evaluates all methods on all sets, and compares them with the teacher if there is one."""
        models, adapter = (trained.models, trained.adapter) if trained else (self.models, None)
        return replace(self, models=models)._judged(adapter)

    def _judged(self, adapter: Path | None) -> Judged:
        set_seed(self.recipe.seed)
        names = methods_of(self.recipe)
        scores: dict[MethodName, list[SetScore]] = {name: [] for name in names}
        answered: list[Prediction] = []
        for _, rows in self.sets:
            self.judging.held_out(rows)  # the teacher writes before the phase `evaluate` begins
        self.close()
        with self.recorder.phase("evaluate"):
            written, answered_by = self._answers(names, adapter)
            for (held_out, rows), of_set in zip(self.sets, written, strict=True):
                judged = self.judging.set(held_out, rows, of_set)
                for name, (score, lines) in judged.items():
                    scores[name].append(score)
                    answered += lines
            methods = [
                MethodResult(
                    method=name,
                    scores=scores[name],
                    prompt_tokens_mean=mean(
                        len(ids) for _, rows in self.sets for ids in rows.prompts(METHODS[name])
                    ),
                    seconds_per_query=self.judging.seconds(
                        name, self.sets[0][1], tokens=_mean_tokens(scores[name])
                    ),
                    seconds_warm=self.judging.seconds_warm(
                        name, self.sets[0][1], tokens=_mean_tokens(scores[name])
                    ),
                    drift=self._drift(self.models) if METHODS[name].learns else None,
                    retention=self.judging.retention() if name == self.recipe.method else None,
                )
                for name in names
            ]
        asked = [
            row
            for held_out, rows in self.sets
            for row in evaluated(self.form, held_out.name, rows.rows)
        ]
        return Judged(methods, answered, [], asked, answered_by)

    def _answers(
        self, names: Sequence[MethodName], adapter: Path | None
    ) -> tuple[list[dict[MethodName, list[Answered]]], str | None]:
        """Each method's answers to all sets, and the engine that wrote them; None: this process."""
        wanted, started = self.recipe.evaluation.engine, None
        settings = None if self.recipe.quantization else chosen(wanted)
        if settings is not None:
            model, prompts = self.models.student, self.sets[0][1].student_prompts
            started = Started(Wanted(settings, model, 1, adapter, prompts, self.display))
            if wanted == "auto":
                started = started.if_it_starts()
        judging = replace(self.judging, engine=started)
        try:
            written = [judging.written(*one, names) for one in self.sets]
            return written, None if started is None else started.wanted.settings.name
        finally:
            if started is not None:
                started.close()  # what follows needs its memory

    def facts(self, trained: Trained | None) -> dict[str, Any]:
        """Facts about the models, the prompt and the context."""
        models = trained.models if trained else self.models
        with_teacher = [name for name in methods_of(self.recipe) if METHODS[name].teacher]
        weights = (p for p in models.student.network.parameters() if p.requires_grad)
        shipped = sum(p.numel() * p.element_size() for p in weights) if trained else 0
        return {
            "teacher_model": models.teacher.name if with_teacher and not models.shared else None,
            "dtype": models.student.dtype,
            "prompt": sent_prompt(self.form, self.rows.alone, max_new_tokens=self.max_new_tokens),
            "context": context_facts(
                self.recipe,
                self.rows.context,
                self.form,
                teacher=[len(ids) for _, rows in self.sets for ids in rows.teacher_prompts],
                student=[len(ids) for _, rows in self.sets for ids in rows.student_prompts],
                own=any(row.context for row in self.learnt.rows),
            ),
            "shipped_bytes": shipped,
            "logs": self.rows.given and self.rows.given.found(self.dropped),
        }

    @cached_property
    def teaching(self) -> Teaching:
        """Lets the teacher score completions."""
        teaching = Teaching(self.recipe, self.models, self.recorder, self.display, self.engine)
        made = self._logged
        if made is None or self.method.learns != "targets":
            return teaching
        return replace(teaching, logged=made(self.learnt.rows))

    @cached_property
    def writer(self) -> Writer:
        """Lets the teacher write completions."""
        return Writer(
            self.recipe,
            self.models,
            self.form.ending,
            self.store,
            self.recorder,
            self.display,
            self.engine,
        )

    @cached_property
    def judging(self) -> Judging:
        """Judges answers."""
        return Judging(
            recipe=self.recipe,
            task=self.task,
            models=self.models,
            form=self.form,
            writer=self.writer,
            max_new_tokens=self.max_new_tokens,
            metrics=[*map(comparing, self.recipe.evaluation.metrics)],
            rules=self.recipe.evaluation.ruled(),
            context=self.context_text,
            recorder=self.recorder,
            display=self.display,
            logged=self._logged,
        )

    @property
    def _logged(self) -> Callable[[Sequence[Row]], Logged] | None:
        """Makes what rows tell of the teacher's predictions; None if its model makes them."""
        if self.recipe.teacher.targets == "computed":
            return None
        return lambda rows: Logged(rows, self.form.tokens, vocabulary_of(self.models.student))

    @property
    def _objective(self) -> Objective:
        return CrossEntropy() if self.method.learns == "labels" else self.recipe.objective


def _mean_tokens(scores: list[SetScore]) -> float:
    written = scores[0].written
    return written.ends.tokens_mean if written else 1.0


def load_models(recipe: Recipe, display: Display) -> Models:
    """Loads teacher and student; see `Models.load`."""
    return Models.load(
        recipe.model,
        recipe.teacher.model,
        dtype=recipe.dtype,
        tuning=cast(LoRA, recipe.tuning),
        seed=recipe.seed,
        display=display,
        how=recipe.loading,
    )
