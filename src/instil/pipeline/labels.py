"""One cell of a classification study: rows drawn, teacher read, student trained, all sets judged."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from instil.evaluation.labels import Judgement, right_rows
from instil.losses.label_kl import LabelKL, LabelTargets
from instil.methods import METHODS, Method, Phase
from instil.models import bundled
from instil.models.load import Outline, outline, resolve, resolve_dtype
from instil.pipeline import cell_record, label_card
from instil.pipeline.label_student import HEAD, LabelStudent
from instil.pipeline.rows import draw_for
from instil.prompts.context import Context
from instil.prompts.demonstrations import Demonstrator
from instil.prompts.format import PromptFormat, prompt_format
from instil.prompts.labels import LabelTokens, check_prompts
from instil.recipe.recipe import Recipe
from instil.results.cell import Cell, CellTraining, SingleContext
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.progress import Display
from instil.tasks import LabelTask
from instil.tasks.free_text import FreeText
from instil.tasks.pattern import fill
from instil.tasks.rows import Row
from instil.tasks.split import Drawn, EvaluationSet
from instil.teacher.labels import (
    CONTENT_FREE,
    LabelScores,
    LabelTeacher,
    average,
    log_reference,
    probabilities,
)
from instil.training import trainer


@dataclass(frozen=True)
class LabelCell:
    """A cell whose rows are drawn and whose prompts can be rendered; no weights are loaded yet."""

    recipe: Recipe
    method: Method
    task: LabelTask
    objective: LabelKL
    rows: Drawn
    outline: Outline
    form: PromptFormat
    choices: LabelTokens
    demonstrator: Demonstrator
    teacher: LabelTeacher | None
    recorder: Recorder
    display: Display

    @classmethod
    def prepare(cls, recipe: Recipe, store: Path, display: Display) -> LabelCell:
        """Draws the rows; no weights are loaded."""
        task, objective, method = recipe.task, recipe.objective, METHODS[recipe.method]
        assert task is not None
        assert not isinstance(task, FreeText)
        assert isinstance(objective, LabelKL)
        if method.learns:
            trainer.check(recipe.training, objective, None)
        recorder = Recorder()
        with recorder.phase("load"):
            rows = draw_for(recipe, task.read())
            student = outline(recipe.model)
            form = _form(recipe, student)
            choices = LabelTokens.of(task.verbalizer, form, rows.training[0].input)
            teacher = None
            if method.teacher:
                teacher = LabelTeacher.of(recipe, student, form, choices, store, display)
        return cls(
            recipe=recipe,
            method=method,
            task=task,
            objective=objective,
            rows=rows,
            outline=student,
            form=form,
            choices=choices,
            demonstrator=Demonstrator(
                settings=recipe.demonstrations,
                pool=rows.pool,
                prefix=task.prefix,
                forms={label: forms[0] for label, forms in task.verbalizer.items()},
                seed=recipe.seed,
            ),
            teacher=teacher,
            recorder=recorder,
            display=display,
        )

    def run(self, folder: Path, name: str, varied: dict[str, Any]) -> Cell:
        """Does the cell's work and writes its folder, which exists; of several processes, the main one writes."""
        self._check_student()
        said, targets = {}, self._gold()
        if self.teacher is not None:
            references = [self._reference(self.teacher, n) for n in self._numbers]
            if self.method.learns:
                targets = self._taught(self.teacher, references)
            said = {
                one.name: self._judge_teacher(self.teacher, one, references)
                for one in self.rows.sets
            }
            self.teacher.release()
        trained, shipped, answers = None, 0, said
        if self.recipe.method != "in_context":
            with self.recorder.phase("load"):
                student = LabelStudent.make(self.recipe, self.method, self.choices)
            if self.method.learns:
                trained = self._train(student, targets, folder / cell_record.SCRATCH)
                student = student.made_whole(self.method, self.choices)
                shipped = student.shipped_bytes
                if self.recipe.student.save and processes.is_main():
                    student.save(folder)
            answers = {one.name: self._judge_student(student, one) for one in self.rows.sets}
        taught_by = said if self.recipe.method == "distillation" else {}
        labels = self.choices.labels
        self.recorder.add_other_processes()
        cell = cell_record.describe(
            self.recipe,
            name=name,
            varied=varied,
            recorder=self.recorder,
            dtype=resolve_dtype(self.recipe.dtype),
            task=self.task.name,
            labels=list(labels),
            prompt_tokens_mean=mean([answer.prompt_tokens for answer in answers.values()]),
            scores=[
                answers[one.name].score(labels, one, teacher=taught_by.get(one.name))
                for one in self.rows.sets
            ],
            teacher=[
                said[one.name].score(labels, one, teacher=None)
                for one in self.rows.sets
                if taught_by
            ],
            training=trained,
            reused=sorted(self.recorder.reused),
            shipped_bytes=shipped,
            left_out=self.rows.left_out,
        )
        if processes.is_main():
            shutil.rmtree(folder / cell_record.SCRATCH, ignore_errors=True)
            if (folder / "adapter").exists() and self._answers_plainly:
                (folder / "adapter" / "README.md").write_text(self._card(cell), encoding="utf-8")
            sets = self.rows.sets
            told = [line for one in sets for line in answers[one.name].predictions(labels, one)]
            cell_record.write(folder, cell, told)
        return cell

    @property
    def _answers_plainly(self) -> bool:
        """Whether the whole base with the adapter answers from a plain text, as the card's snippet does."""
        whole = self.recipe.student.keep_layers is None
        plain = self.recipe.prompt.format != "chat" and not self.method.context
        return whole and plain and self.method.head == "language_model"

    def _card(self, cell: Cell) -> str:
        context = Context(instruction=self.task.prefix or None)
        before = self.recipe.prompt.completion.partition("{output}")[0]
        return label_card.render(
            cell,
            base=resolve(self.recipe.model),
            hub_id=bundled.hub_id(self.recipe.model),
            prompt=self.form.text(self.task.pattern, context),
            words={
                label: [before + form for form in forms]
                for label, forms in self.task.verbalizer.items()
            },
            example=self.form.text(self.rows.sets[0].rows[0].input, context),
        )

    def _check_student(self) -> None:
        """Refuses every row that the student cannot read whole, before anything is computed."""
        if self.recipe.method == "in_context":
            return
        asked = HEAD if self.method.head == "classification" else self.choices.completions
        reads = [(one.name, one.rows, self.method.context) for one in self.rows.sets]
        if self.method.learns:
            reads.append(("training rows", self.rows.training, self.method.context_in_training))
        for name, rows, context in reads:
            prompts = self._prompts(name, rows, context=context)
            check_prompts(prompts, asked, self.outline.window, what=name)

    @property
    def _numbers(self) -> range:
        return range(self.recipe.teacher.contexts)

    def _say(
        self,
        teacher: LabelTeacher,
        number: int,
        name: str,
        queries: Sequence[Row],
        *,
        phase: Phase | None,
        top_k: int | None = None,
    ) -> LabelScores:
        """The teacher's predictions under one of its contexts; a phase of None is nobody's cost."""
        scores, reused = teacher.score(
            f"teacher reads {name}"
            + (f", context {number + 1} of {len(self._numbers)}" if len(self._numbers) > 1 else ""),
            queries,
            self.demonstrator.contexts(number, queries, name),
            top_k=top_k,
            temperature=self.objective.temperature,
            recorder=self.recorder if phase else Recorder(),
            phase=phase or "evaluate",
        )
        if phase and reused:
            self.recorder.reused.add(phase)
        return scores

    def _reference(self, teacher: LabelTeacher, number: int) -> Tensor | None:
        """What a context's predictions are divided by."""
        calibration = self.recipe.teacher.calibration
        if calibration == "none":
            return None
        queries, name = self.rows.training, "training rows"
        if calibration == "contextual":
            queries, name = (
                [Row(fill(self.task.pattern, text)) for text in CONTENT_FREE],
                "empty rows",
            )
        return log_reference(self._say(teacher, number, name, queries, phase="teach").logprobs_RL)

    def _gold(self) -> list[LabelTargets]:
        index = {label: number for number, label in enumerate(self.choices.labels)}
        choices = None if self.method.head == "classification" else self.choices
        return [
            # No loss reads the label of a row that has none.
            LabelTargets(
                torch.tensor([-1 if row.output is None else index[row.output]]), None, None, choices
            )
            for row in self.rows.training
        ]

    def _taught(
        self, teacher: LabelTeacher, references: Sequence[Tensor | None]
    ) -> list[LabelTargets]:
        """The gold labels with what the teacher says of the training rows."""
        rows, gold = self.rows.training, self._gold()
        if self.objective.over == "vocabulary":
            scores = self._say(
                teacher, 0, "training rows", rows, phase="teach", top_k=self.recipe.teacher.top_k
            )
            assert scores.vocabulary is not None
            whole = scores.vocabulary.split([self.choices.positions] * len(rows))
            return [
                LabelTargets(one.gold_R, None, part, one.choices)
                for one, part in zip(gold, whole, strict=True)
            ]
        said = [
            self._say(teacher, n, "training rows", rows, phase="teach").logprobs_RL
            for n in self._numbers
        ]
        probs_RL = average([probabilities(one, r) for one, r in zip(said, references, strict=True)])
        masses: Sequence[Tensor | None] = [None] * len(rows)
        if self.objective.over == "labels_and_mass":  # calibration leaves it as it is
            masses = list(average([one.exp().sum(-1, keepdim=True) for one in said]).clamp(max=1))
        return [
            LabelTargets(one.gold_R, probs[None], None, one.choices, mass)
            for one, probs, mass in zip(gold, probs_RL, masses, strict=True)
        ]

    def _judge_teacher(
        self, teacher: LabelTeacher, one: EvaluationSet, references: Sequence[Tensor | None]
    ) -> Judgement:
        # What a distilled student is compared with is not a cost of its own.
        phase: Phase | None = None if self.method.learns else "evaluate"
        scores = [self._say(teacher, n, one.name, one.rows, phase=phase) for n in self._numbers]
        said = [probabilities(s.logprobs_RL, r) for s, r in zip(scores, references, strict=True)]
        labels = self.choices.labels
        singles = [
            SingleContext(
                accuracy=mean(right_rows(labels, one, probabilities(score.logprobs_RL))),
                calibrated=None if r is None else mean(right_rows(labels, one, probs)),
            )
            for score, probs, r in zip(scores, said, references, strict=True)
        ]
        return Judgement(
            probs_RL=average(said),
            mass=mean([float(s.logprobs_RL.exp().sum(-1).mean()) for s in scores]),
            singles=singles if len(singles) > 1 else [],
            # A query is sent under each context.
            prompt_tokens=sum(s.prompt_tokens for s in scores),
        )

    def _prompts(self, name: str, rows: Sequence[Row], *, context: bool) -> list[list[int]]:
        """What the student reads."""
        contexts = [Context(instruction=self.task.prefix or None)] * len(rows)
        if context:
            contexts = self.demonstrator.contexts(0, rows, name)
        return [self.form.prompt_ids(r.input, c) for r, c in zip(rows, contexts, strict=True)]

    def _train(
        self, student: LabelStudent, targets: list[LabelTargets], scratch: Path
    ) -> CellTraining:
        objective = self.objective
        if self.method.learns == "labels":
            objective = LabelKL(alpha=0.0, over="labels")
        set_seed(self.recipe.seed)
        rows, context = self.rows.training, self.method.context_in_training
        with self.recorder.phase("train"):
            return student.train(
                self._prompts("training rows", rows, context=context),
                targets,
                objective=objective,
                scratch=scratch,
                advance=lambda steps, tokens: self.recorder.count(
                    "train", tokens=tokens, steps=steps
                ),
                display=self.display,
            )

    def _judge_student(self, student: LabelStudent, one: EvaluationSet) -> Judgement:
        prompts = self._prompts(one.name, one.rows, context=self.method.context)
        what = f"{self.method.label} answers {one.name}"
        with self.recorder.phase("evaluate"), self.display.bar(what, len(prompts)) as bar:
            logprobs_RL = student.logprobs(
                prompts, advance=self.recorder.advance("evaluate", bar.advance)
            )
        return Judgement(
            probs_RL=probabilities(logprobs_RL),
            mass=None if student.choices is None else float(logprobs_RL.exp().sum(-1).mean()),
            singles=[],
            prompt_tokens=sum(map(len, prompts)) / len(prompts),
        )


def _form(recipe: Recipe, student: Outline) -> PromptFormat:
    """How a row is put to the models; the task has filled in its own pattern."""
    chosen = "plain" if recipe.prompt.format == "auto" else recipe.prompt.format
    settings = recipe.prompt.model_copy(update={"pattern": "{input}", "format": chosen})
    return prompt_format(student.tokenizer, settings)
