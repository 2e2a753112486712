"""The steps of a cell with labels as answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, cast

import torch
from torch import Tensor
from transformers import set_seed

from instil.evaluation.answers import seconds_per_query
from instil.evaluation.labels import Judgement, label_logprobs, right_rows
from instil.losses.label_kl import LabelKL, LabelTargets
from instil.methods import Phase
from instil.models.branches import Branches
from instil.models.load import LanguageModel, Outline, load, outline
from instil.models.number_format import resolve_dtype
from instil.models.roles import Models, Reshaped, shared_out, take_over
from instil.pipeline.folder import CHECKPOINTS
from instil.pipeline.form import check_prompts_of, form_of
from instil.pipeline.keeping import kept_texts
from instil.pipeline.record import context_facts, sent_prompt
from instil.pipeline.rows import CellRows
from instil.pipeline.steps import FIXED_BYTES, Judged, Steps
from instil.prompts.labels import HEAD, LabelTokens, check_prompts
from instil.recipe.recipe import Recipe
from instil.results.schema import MethodResult, Prediction
from instil.results.scores import Drift, SingleContext
from instil.results.training import Training
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.progress import Display
from instil.tasks import LabelTask
from instil.tasks.pattern import fill
from instil.tasks.rows import Row
from instil.tasks.split import EvaluationSet
from instil.teacher.labels import (
    CONTENT_FREE,
    LabelLesson,
    LabelScores,
    LabelTeacher,
    average,
    log_reference,
    probabilities,
)
from instil.training import launch, trainer


@dataclass(frozen=True)
class Taught:
    """The predictions of the teacher.

    Attributes:
        targets: For each training row, its gold label and the teacher's predictions.
        judgements: Predictions on each evaluation set, by set name. Empty without a teacher.
    """

    targets: list[LabelTargets]
    judgements: dict[str, Judgement]


@dataclass(frozen=True)
class Trained:
    """A trained student.

    Attributes:
        student: The student. A single process can run it.
        training: Facts about its training.
    """

    student: LanguageModel
    training: Training


@dataclass(frozen=True)
class LabelSteps(Steps[Taught, Trained]):
    """A cell with its rows drawn and its prompts checked. No weights are loaded yet."""

    outline: Outline
    tokens: LabelTokens
    teacher: LabelTeacher | None

    @classmethod
    def prepare(cls, recipe: Recipe, *, store: Path, display: Display) -> LabelSteps:
        """Draws the rows, and refuses rows that the student cannot read. Loads no weights."""
        recorder = Recorder()
        with recorder.phase("load"):
            rows = CellRows.of(recipe)
            student = outline(recipe.model)
            form = form_of(recipe, student)
            tokens = LabelTokens.of(
                cast(LabelTask, recipe.task).verbalizer, form, rows.drawn.training[0].input
            )
        steps = cls(
            recipe=recipe,
            rows=rows,
            store=store,
            recorder=recorder,
            display=display,
            outline=student,
            form=form,
            tokens=tokens,
            teacher=None,
        )
        if steps.method.learns:
            launch.check(recipe.training, steps.objective, None)
        steps._check_student()
        check_prompts_of(recipe, rows, form, display)
        if not steps.method.teacher:
            return steps
        with recorder.phase("load"):
            teacher = LabelTeacher.of(recipe, student, form, tokens, store, display)
        return replace(steps, teacher=teacher)

    @property
    def task(self) -> LabelTask:
        """The task, which names the labels and their words."""
        return cast(LabelTask, self.recipe.task)

    @property
    def objective(self) -> LabelKL:
        """The loss."""
        if self.method.learns == "labels":
            return LabelKL(alpha=0.0, over="labels")
        return cast(LabelKL, self.recipe.objective)

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints of student and teacher, and the dtype."""
        teacher = self.teacher.outline if self.teacher else self.outline
        loaded = [resolve_dtype(self.recipe.dtype), *self.recipe.loading.identity]
        return [self.outline.fingerprint, teacher.fingerprint, *loaded]

    @property
    def needed_bytes(self) -> int:
        """Space for the small files. The size of the trained weights is not known yet."""
        return FIXED_BYTES

    def example(self) -> str:
        """See `Steps.example`."""
        return self.form.text(self.rows.drawn.sets[0].rows[0].input, self.rows.alone)

    def teach(self) -> Taught:
        """Computes the teacher's predictions for all rows, then frees the teacher's memory."""
        targets, judgements = self._gold(), {}
        if self.teacher is not None:
            references = [self._reference(self.teacher, n) for n in self._context_numbers]
            if self.method.learns:
                targets = self._soft_targets(self.teacher, references)
            judgements = {
                rows.name: self._judge_teacher(self.teacher, rows, references)
                for rows in self.rows.drawn.sets
            }
            self.teacher.release()
        return Taught(targets, judgements)

    def train(self, taught: Taught, folder: Path) -> Trained:
        """Trains the student."""
        student = self._load_student()
        lessons = [
            LabelLesson(prompt, self._branches, target)
            for prompt, target in zip(
                self._prompts(
                    "training rows",
                    self.rows.drawn.training,
                    context=self.method.context_in_training,
                ),
                taught.targets,
                strict=True,
            )
        ]
        kept = kept_texts(self, lambda: self._base(student))
        set_seed(self.recipe.seed)
        with self.recorder.phase("train"):
            report = trainer.train(
                student.network,
                lessons,
                objective=self.objective,
                settings=self.recipe.training,
                seed=self.recipe.seed,
                pad_id=student.pad_id,
                checkpoints=folder / CHECKPOINTS,
                resumable=False,
                advance=lambda steps, tokens: self.recorder.count(
                    "train", tokens=tokens, steps=steps
                ),
                display=self.display,
                kept=kept,
            )
        parameters = list(student.network.parameters())
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        training = Training(
            rows=len(lessons),
            steps=report.steps,
            trainable_parameters=trainable,
            trainable_share=trainable / sum(p.numel() for p in parameters),
            loss=report.loss,
        )
        weights = shared_out(student.network)
        if weights is not None:
            student = self._load_student()
            take_over(student.network, weights)
        if self.recipe.student.save:
            processes.main_does(lambda: self._save(student, folder))
        return Trained(student, training)

    def training(self, trained: Trained) -> Training:
        """Facts about the training of the student."""
        return trained.training

    def judge(self, taught: Taught, trained: Trained | None) -> Judged:
        """Evaluates the method on all sets. In-context learning uses the teacher's predictions."""
        judgements, seconds, drifted = taught.judgements, None, None
        sets = self.rows.drawn.sets
        if self.recipe.method != "in_context":
            student = trained.student if trained else self._load_student()
            judgements = {rows.name: self._judge_student(student, rows) for rows in sets}
            with self.recorder.phase("evaluate"):
                seconds = self._seconds(student)
                drifted = self._drift_of(student) if trained else None
        labels = self.tokens.labels
        by_teacher = taught.judgements if self.recipe.method == "distillation" else {}
        result = MethodResult(
            method=self.recipe.method,
            scores=[
                judgements[rows.name].score(labels, rows, teacher=by_teacher.get(rows.name))
                for rows in sets
            ],
            prompt_tokens_mean=mean([judged.prompt_tokens for judged in judgements.values()]),
            seconds_per_query=seconds,
            drift=drifted,
        )
        predictions: list[Prediction] = [
            line
            for rows in sets
            for line in judgements[rows.name].predictions(labels, rows, self.recipe.method)
        ]
        teacher = [
            by_teacher[rows.name].score(labels, rows, teacher=None) for rows in sets if by_teacher
        ]
        return Judged([result], predictions, teacher)

    def facts(self, trained: Trained | None) -> dict[str, Any]:
        """Facts about the labels, the models, the prompt and the context."""
        weights: Any = trained.student.network.parameters() if trained else ()
        verbalizer = self.task.verbalizer
        before = self.recipe.prompt.completion.partition("{output}")[0]
        return {
            "labels": list(self.tokens.labels),
            "teacher_model": self.recipe.teacher.model if self.method.teacher else None,
            "dtype": resolve_dtype(self.recipe.dtype),
            "prompt": sent_prompt(
                self.form,
                self.rows.alone,
                pattern=self.task.pattern,
                words={
                    label: [before + form for form in forms] for label, forms in verbalizer.items()
                },
            ),
            "context": context_facts(self.recipe, None, self.form),
            "shipped_bytes": sum(p.numel() * p.element_size() for p in weights if p.requires_grad),
        }

    @property
    def _branches(self) -> Branches:
        """The token ids that are read after each prompt."""
        return HEAD if self.method.head == "classification" else self.tokens.branches

    @property
    def _labels(self) -> LabelTokens | None:
        """The tokens of the labels; None for a classification head."""
        return None if self.method.head == "classification" else self.tokens

    def _load_student(self) -> LanguageModel:
        with self.recorder.phase("load"):
            return student_of(self.recipe, self.method.head, len(self.tokens.labels)).load(
                tuning=self.recipe.tuning if self.method.learns else None, seed=self.recipe.seed
            )

    def _base(self, student: LanguageModel) -> LanguageModel:
        """The untrained model with all layers, in the number format in which it is used."""
        if self.recipe.student.keep_layers is None and not self.recipe.tuning.trains_base:
            return student
        with self.recorder.phase("load"):
            return load(self.recipe.model, dtype=self.recipe.dtype, how=self.recipe.loading)

    def _save(self, student: LanguageModel, folder: Path) -> None:
        """Writes the trained weights. A full model is written with its tokenizer."""
        head = self.method.head == "classification"
        self.recipe.tuning.save(student.network, folder, head=head)
        if (folder / "model").exists():
            student.tokenizer.save_pretrained(folder / "model")

    def _check_student(self) -> None:
        """Refuses rows that do not fit the student's window, before anything is computed."""
        paths = [list(path) for path in self._branches.paths]
        self.outline.check_ids(paths, where="the completion of label")
        if self.recipe.method == "in_context":
            return
        reads = [(drawn.name, drawn.rows, self.method.context) for drawn in self.rows.drawn.sets]
        if self.method.learns:
            rows = self.rows.drawn.training
            reads.append(("training rows", rows, self.method.context_in_training))
        for name, rows, context in reads:
            prompts = self._prompts(name, rows, context=context)
            check_prompts(prompts, self._branches, self.outline.window, what=name)
            self.outline.check_ids(prompts, where=f"{name}, row")

    @property
    def _context_numbers(self) -> range:
        return range(self.recipe.teacher.contexts)

    def _scores(
        self,
        teacher: LabelTeacher,
        number: int,
        name: str,
        queries: Sequence[Row],
        *,
        phase: Phase | None,
        top_k: int | None = None,
    ) -> LabelScores:
        """Returns the teacher's predictions under one of its contexts.

        If `phase` is None, the cost is not recorded.
        """
        scores, reused = teacher.score(
            f"teacher reads {name}"
            + (
                f", context {number + 1} of {len(self._context_numbers)}"
                if len(self._context_numbers) > 1
                else ""
            ),
            queries,
            self.rows.contexts.contexts(number, queries, name),
            top_k=top_k,
            temperature=self.objective.temperature,
            recorder=self.recorder if phase else Recorder(),
            phase=phase or "evaluate",
        )
        if phase and reused:
            self.recorder.reused.add(phase)
        return scores

    def _reference(self, teacher: LabelTeacher, number: int) -> Tensor | None:
        """Returns the log-probabilities that calibrate a context's predictions, or None."""
        calibration = self.recipe.teacher.calibration
        if calibration == "none":
            return None
        queries, name = self.rows.drawn.training, "training rows"
        if calibration == "contextual":
            queries = [Row(fill(self.task.pattern, text)) for text in CONTENT_FREE]
            name = "empty rows"
        return log_reference(
            self._scores(teacher, number, name, queries, phase="teach").logprobs_RL
        )

    def _gold(self) -> list[LabelTargets]:
        index = {label: number for number, label in enumerate(self.tokens.labels)}
        return [
            # A missing label is -1. No loss reads it.
            LabelTargets(
                torch.tensor([-1 if row.output is None else index[row.output]]),
                None,
                None,
                self._labels,
            )
            for row in self.rows.drawn.training
        ]

    def _soft_targets(
        self, teacher: LabelTeacher, references: Sequence[Tensor | None]
    ) -> list[LabelTargets]:
        """Returns the gold labels and the teacher's predictions for the training rows."""
        rows, gold = self.rows.drawn.training, self._gold()
        if self.objective.over == "vocabulary":
            scores = self._scores(
                teacher, 0, "training rows", rows, phase="teach", top_k=self.recipe.teacher.top_k
            )
            assert scores.vocabulary is not None
            parts = scores.vocabulary.split([self.tokens.positions] * len(rows))
            return [
                LabelTargets(row.gold_R, None, part, row.choices)
                for row, part in zip(gold, parts, strict=True)
            ]
        logprobs = [
            self._scores(teacher, n, "training rows", rows, phase="teach").logprobs_RL
            for n in self._context_numbers
        ]
        probs_RL = average(
            [probabilities(each, r) for each, r in zip(logprobs, references, strict=True)]
        )
        masses: Sequence[Tensor | None] = [None] * len(rows)
        if self.objective.over == "labels_and_mass":  # calibration does not change the mass
            masses = list(
                average([each.exp().sum(-1, keepdim=True) for each in logprobs]).clamp(max=1)
            )
        return [
            LabelTargets(row.gold_R, probs[None], None, row.choices, mass)
            for row, probs, mass in zip(gold, probs_RL, masses, strict=True)
        ]

    def _judge_teacher(
        self, teacher: LabelTeacher, rows: EvaluationSet, references: Sequence[Tensor | None]
    ) -> Judgement:
        # If a student is trained, the teacher's answers are only its reference: not an own cost.
        phase: Phase | None = None if self.method.learns else "evaluate"
        scores = [
            self._scores(teacher, n, rows.name, rows.rows, phase=phase)
            for n in self._context_numbers
        ]
        probs = [probabilities(s.logprobs_RL, r) for s, r in zip(scores, references, strict=True)]
        labels = self.tokens.labels
        singles = [
            SingleContext(
                accuracy=mean(right_rows(labels, rows, probabilities(score.logprobs_RL))),
                calibrated=None if r is None else mean(right_rows(labels, rows, probs_RL)),
            )
            for score, probs_RL, r in zip(scores, probs, references, strict=True)
        ]
        return Judgement(
            probs_RL=average(probs),
            mass=mean([float(s.logprobs_RL.exp().sum(-1).mean()) for s in scores]),
            singles=singles if len(singles) > 1 else [],
            # Each query is sent once per context.
            prompt_tokens=sum(s.prompt_tokens for s in scores),
        )

    def _prompts(self, name: str, rows: Sequence[Row], *, context: bool) -> Sequence[list[int]]:
        """Returns the student's prompts, in token ids."""
        contexts = [self.rows.alone] * len(rows)
        if context:
            contexts = self.rows.contexts.contexts(0, rows, name)
        return self.form.prompts(rows, contexts)

    def _logprobs(self, student: LanguageModel, prompts: Sequence[list[int]], show: Any) -> Tensor:
        return label_logprobs(
            student,
            prompts,
            self._labels,
            batch_size=self.recipe.evaluation.batch_size,
            advance=show,
        )

    def _judge_student(self, student: LanguageModel, rows: EvaluationSet) -> Judgement:
        prompts = self._prompts(rows.name, rows.rows, context=self.method.context)
        what = f"{self.method.label} answers {rows.name}"
        with self.recorder.phase("evaluate"), self.display.bar(what, len(prompts)) as bar:
            show = self.recorder.advance("evaluate", bar.advance)
            logprobs_RL = self._logprobs(student, prompts, show)
        mass = None if self._labels is None else float(logprobs_RL.exp().sum(-1).mean())
        return Judgement(
            probs_RL=probabilities(logprobs_RL),
            mass=mass,
            singles=[],
            prompt_tokens=sum(map(len, prompts)) / len(prompts),
        )

    def _seconds(self, student: LanguageModel) -> float:
        first = self.rows.drawn.sets[0]
        prompts = self._prompts(first.name, first.rows, context=self.method.context)

        def ask(prompt: list[int]) -> object:
            return self._logprobs(student, [prompt], lambda rows, tokens: None)

        return seconds_per_query(prompts, ask)

    def _drift_of(self, student: LanguageModel) -> Drift | None:
        """Measures the drift of a student that is the full language model with an adapter.

        Returns None for other students, whose base model is not loaded.
        """
        full = self.recipe.student.keep_layers is None and self._labels is not None
        if not full or self.recipe.tuning.trains_base:
            return None
        return self._drift(Models(teacher=student, student=student))


def student_of(recipe: Recipe, head: str, labels: int) -> Reshaped:
    """Returns the model from which the student of a classification recipe is made.

    Args:
        recipe: Recipe that names the model.
        head: `language_model` or `classification`.
        labels: Number of labels.
    """
    return Reshaped(
        recipe.model,
        dtype=recipe.dtype,
        keep_layers=recipe.student.keep_layers,
        labels=labels if head == "classification" else None,
        how=recipe.loading,
    )
