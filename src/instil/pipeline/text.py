"""The steps of a cell with free-text answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, cast

from transformers import set_seed

from instil.evaluation.answers import answer, seconds_per_query
from instil.evaluation.fidelity import Likelihood, likelihoods
from instil.losses import CrossEntropy, Objective
from instil.methods import METHODS, MethodName
from instil.models.generate import Decoding, generate
from instil.models.roles import Models
from instil.models.tuning import LoRA
from instil.pipeline.checkpoints import Watch, held_out
from instil.pipeline.folder import CHECKPOINTS, SCRATCH
from instil.pipeline.form import form_of
from instil.pipeline.given import Given, needs_gold
from instil.pipeline.inputs import with_made_inputs, write_made
from instil.pipeline.keeping import kept_texts
from instil.pipeline.predictions import predictions
from instil.pipeline.record import context_facts, sent_prompt
from instil.pipeline.rendering import Rendering
from instil.pipeline.rows import CellRows
from instil.pipeline.steps import FIXED_BYTES, Judged, Steps
from instil.prompts.rendered import RenderedRows, completion_limit
from instil.prompts.windows import Windows
from instil.recipe.canonical import methods_of, selection_of
from instil.recipe.recipe import Recipe
from instil.results.logs import Dropped
from instil.results.schema import MethodResult, Prediction
from instil.results.scores import Completions, SetScore
from instil.results.statistics import proportion
from instil.results.training import Checkpoint, HeldOutLoss, Training
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.progress import Display
from instil.tasks.files import Files
from instil.tasks.free_text import FreeText
from instil.tasks.split import EvaluationSet, watched_rows
from instil.teacher.completions import Writer
from instil.teacher.inputs import Made
from instil.teacher.lessons import Grouped, Teaching
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
    """

    lessons: Grouped
    held_out: list[int]
    truncated: int
    made: Made | None


@dataclass(frozen=True)
class Trained:
    """A trained student.

    Attributes:
        models: Teacher and student. A single process can run the student.
        training: Facts about its training.
    """

    models: Models
    training: Training


@dataclass(frozen=True)
class TextSteps(Steps[Taught | None, Trained]):
    """A cell with all rows rendered. All rows fit the windows of the models."""

    models: Models
    learnt: RenderedRows
    validation: RenderedRows | None
    sets: list[tuple[EvaluationSet, RenderedRows]]
    max_new_tokens: int
    dropped: list[Dropped] = field(default_factory=list)
    _held_out: dict[str, tuple[Completions, list[list[int]]] | None] = field(default_factory=dict)

    @classmethod
    def prepare(
        cls, recipe: Recipe, *, store: Path, display: Display, given: Given | None = None
    ) -> TextSteps:
        """Draws and renders the rows, loads the models, and refuses rows that do not fit them."""
        method = METHODS[recipe.method]
        callbacks.check_tensorboard(recipe.training)
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
        return cls(
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
        )

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
        per_token = selection.token_bytes(self._teaching.vocabulary)
        stored = longest * per_token if self.recipe.objective.needs_targets else 0
        parameters = self.models.student.network.parameters()
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        return FIXED_BYTES + trainable * 4 * 7 + stored

    def teach(self) -> Taught | None:
        """Lets the teacher write and score completions; None if the method does not train."""
        if self.method.learns is None:
            return None
        (rows, made), truncated = with_made_inputs(self), 0
        if self.method.learns == "labels":
            completions = rows.gold_of_rows()
        else:
            completions, truncated = self.writer.learnt(rows, max_new_tokens=self.max_new_tokens)
        if self.method.context_in_training:
            rows = replace(rows, student_prompts=rows.teacher_prompts)
        pairs = rows.pairs(completions, Windows.of(self.models.teacher, self.models.student))
        apart: set[int] = set()
        if self.recipe.training.until:
            apart = watched_rows(rows.rows, seed=f"{self.recipe.seed} held out")
        lessons = Grouped.of(
            self._teaching.lessons(pairs, self._objective, self.store),
            [rows.rows[pair.row].conversation for pair in pairs],
        )
        held_out = [number for number, of in enumerate(lessons.groups) if pairs[of[0]].row in apart]
        return Taught(lessons, held_out, truncated, made)

    def train(self, taught: Taught | None, folder: Path) -> Trained:
        """Trains the student and saves its weights."""
        assert taught is not None
        lessons, student = taught.lessons, self.models.student
        network: Any = student.network
        observe, judged, watched = None, None, None
        if self.validation is not None:
            judged = Watch(network, Checkpoint, folder / SCRATCH)
            observe = judged.observed(self._checkpoint)
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
                online=self._teaching.online(lessons.lessons.pairs, self._objective),
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
        if self.recipe.student.save:
            trained: Any = models.student.network
            processes.main_does(lambda: self.recipe.tuning.save(trained, folder))
        return Trained(models, training)

    def training(self, trained: Trained) -> Training:
        """Facts about the training of the student."""
        return trained.training

    def judge(self, taught: Taught | None, trained: Trained | None) -> Judged:
        """Evaluates all methods on all sets, and compares them with the teacher if there is one."""
        if trained is not None:
            return replace(self, models=trained.models).judge(taught, None)
        set_seed(self.recipe.seed)
        names = methods_of(self.recipe)
        scores: dict[MethodName, list[SetScore]] = {name: [] for name in names}
        answered: list[Prediction] = []
        for _, rows in self.sets:
            self._completions(rows)  # the teacher writes before the phase `evaluate` begins
        with self.recorder.phase("evaluate"):
            for held_out, rows in self.sets:
                judged = self._judge(held_out, rows, names)
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
                    seconds_per_query=self._seconds(name),
                    drift=self._drift(self.models) if METHODS[name].learns else None,
                )
                for name in names
            ]
        return Judged(methods, answered, [])

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
    def _teaching(self) -> Teaching:
        return Teaching(self.recipe, self.models, self.recorder, self.display)

    @cached_property
    def writer(self) -> Writer:
        """Lets the teacher write completions."""
        ending = self.form.ending
        return Writer(self.recipe, self.models, ending, self.store, self.recorder, self.display)

    @property
    def _objective(self) -> Objective:
        return CrossEntropy() if self.method.learns == "labels" else self.recipe.objective

    @property
    def _decoding(self) -> Decoding:
        return Decoding(self.max_new_tokens, batch_size=self.recipe.evaluation.batch_size)

    def _completions(self, rows: RenderedRows) -> tuple[Completions, list[list[int]]] | None:
        """Returns the completions whose likelihood is measured, and their source.

        Returns None if a row has no output and no method uses the teacher, which could write one.
        """
        if rows.name not in self._held_out:
            gold, found = rows.gold_completions, None
            # A logged answer may be another model's. What is learnt is the teacher's own.
            logged = self.recipe.teacher.completions == "teacher" and any(
                row.turn for row in rows.rows
            )
            if gold is not None and not logged:
                found = ("gold", gold)
            elif any(METHODS[name].teacher for name in methods_of(self.recipe)):
                limit = self.max_new_tokens
                found = ("teacher", self.writer.held_out(rows, max_new_tokens=limit))
            self._held_out[rows.name] = cast(Any, found)
        return self._held_out[rows.name]

    def answers(self, rows: RenderedRows, name: MethodName, what: str) -> list[str]:
        """Returns the answers of a method, one per row.

        Args:
            rows: The rows.
            name: Method that answers.
            what: Text for the progress bar.
        """
        prompts = rows.prompts(METHODS[name])
        with self.display.bar(what, len(processes.share(len(prompts)))) as bar:
            return answer(
                self.models,
                self.form,
                prompts,
                METHODS[name],
                self._decoding,
                advance=self.recorder.advance("evaluate", bar.advance),
            )

    def _right(self, rows: RenderedRows, written: Sequence[str]) -> list[bool | None]:
        """Whether each answer is right; None if its row has no output."""
        return [
            None if row.output is None else self.task.right(text, self.form.spoken(row.output))
            for text, row in zip(written, rows.rows, strict=True)
        ]

    def _likelihoods(
        self, rows: RenderedRows, names: Sequence[MethodName], what: str = ""
    ) -> list[Likelihood | None]:
        """Measures how well methods predict the rows' completions, in the main process."""
        found = self._completions(rows)
        if found is None:
            return [None] * len(names)
        methods = [METHODS[name] for name in names]

        def read() -> list[Likelihood]:
            with self.display.bar(what or "reading completions", len(rows.rows)) as bar:
                return likelihoods(
                    self.models,
                    rows,
                    found[1],
                    methods,
                    compare=any(method.teacher for method in methods),
                    batch_size=self.recipe.evaluation.batch_size,
                    advance=self.recorder.advance("evaluate", bar.advance),
                )

        return [*processes.main_does(read)]

    def _checkpoint(self, step: int) -> Checkpoint:
        """Evaluates the student in its current state on the validation rows."""
        rows, name = cast(RenderedRows, self.validation), self.recipe.method
        with self.recorder.instead("evaluate", of="train"):
            written = self.answers(rows, name, f"judging step {step}")
            (found,) = self._likelihoods(rows, [name])
        assert found is not None
        counted = [right for right in self._right(rows, written) if right is not None]
        return Checkpoint(
            step=step,
            accuracy=proportion(counted) if counted else None,
            cross_entropy=found.cross_entropy,
            fidelity=found.fidelity,
            kept=False,
        )

    def _judge(
        self, held_out: EvaluationSet, rows: RenderedRows, names: Sequence[MethodName]
    ) -> dict[MethodName, tuple[SetScore, list[Prediction]]]:
        """Returns each method's score on one set, and its predictions."""
        written = {
            name: self.answers(rows, name, f"{METHODS[name].label} answers {held_out.name}")
            for name in names
        }
        found = self._likelihoods(rows, names, f"comparing on {held_out.name}")
        return {
            name: self._score(held_out, rows, name, written[name], likelihood)
            for name, likelihood in zip(names, found, strict=True)
        }

    def _score(
        self,
        held_out: EvaluationSet,
        rows: RenderedRows,
        name: MethodName,
        written: Sequence[str],
        likelihood: Likelihood | None,
    ) -> tuple[SetScore, list[Prediction]]:
        right = self._right(rows, written)
        lines = predictions(self.task, self.form, held_out.name, rows.rows, name, written, right)
        counted = [outcome for outcome in right if outcome is not None]
        completions = self._completions(rows)
        score = SetScore(
            name=held_out.name,
            domain=held_out.domain,
            rows=len(rows.rows),
            accuracy=proportion(counted) if counted else None,
            cross_entropy=likelihood and likelihood.cross_entropy,
            fidelity=likelihood and likelihood.fidelity,
            tokens=completions and sum(map(len, completions[1])),
            completions=completions and completions[0],
        )
        return score, lines

    def _seconds(self, name: MethodName) -> float:
        """Measures the seconds per query, in the main process."""
        method, alone = METHODS[name], replace(self._decoding, batch_size=1)
        model, ending = self.models.model(method), self.form.ending

        def ask(prompt: list[int]) -> object:
            return generate(model, [prompt], ending, alone, advance=lambda rows, tokens: None)

        with self.models.adapter(on=method.learns is not None):
            prompts = self.sets[0][1].prompts(method)
            return processes.main_does(lambda: seconds_per_query(prompts, ask))


def load_models(recipe: Recipe, display: Display) -> Models:
    """Loads teacher and student; see `Models.load`."""
    return Models.load(
        recipe.model,
        recipe.teacher.model,
        dtype=recipe.dtype,
        tuning=cast(LoRA, recipe.tuning),
        seed=recipe.seed,
        display=display,
    )
