"""A cell of a study whose answers are written: teacher scored, student trained, all sets answered and judged."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, cast

from transformers import set_seed

from instil.evaluation.fidelity import Likelihood, likelihoods
from instil.losses import CrossEntropy, Objective
from instil.methods import METHODS, Method
from instil.models.generate import Decoding, generate
from instil.models.roles import Models
from instil.pipeline import cell_record
from instil.pipeline.checkpoints import Watch
from instil.pipeline.loading import load_models
from instil.pipeline.rows import draw_for
from instil.prompts.context import Context
from instil.prompts.demonstrations import Demonstrator
from instil.prompts.format import PromptFormat, prompt_format
from instil.prompts.pair import AlignedPair
from instil.prompts.rendered import RenderedRows, completion_limit
from instil.recipe.recipe import Recipe
from instil.recipe.sections import Prompt
from instil.results.cell import Cell, CellPrediction, CellTraining, SetScore
from instil.results.statistics import proportion
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.progress import Display
from instil.tasks.free_text import FreeText
from instil.tasks.numbers import final_number
from instil.tasks.rows import Row
from instil.tasks.split import Drawn, EvaluationSet
from instil.teacher.lessons import Lessons, Teaching
from instil.training import callbacks, trainer

VALIDATION = "validation rows"


@dataclass(frozen=True)
class WritingCell:
    """A cell whose every row has been rendered and fits the models."""

    recipe: Recipe
    method: Method
    task: FreeText
    drawn: Drawn
    models: Models
    form: PromptFormat
    learnt: RenderedRows
    validation: RenderedRows | None
    sets: list[tuple[EvaluationSet, RenderedRows]]
    max_new_tokens: int
    store: Path
    recorder: Recorder
    display: Display

    @classmethod
    def prepare(cls, recipe: Recipe, store: Path, display: Display) -> WritingCell:
        """Draws and renders the rows, loads the models, and refuses what they cannot do."""
        task, method = cast(FreeText, recipe.task), METHODS[recipe.method]
        callbacks.check_tensorboard(recipe.training)
        if method.learns:
            at_steps = recipe.evaluation.at_steps
            trainer.check(recipe.training, recipe.objective, at_steps)
        recorder = Recorder()
        with recorder.phase("load"):
            drawn = draw_for(recipe, task.read())
            models = load_models(recipe, display)
            form = prompt_format(models.student.tokenizer, _form(recipe))
        shown = task.exemplars()
        demonstrator = Demonstrator(
            settings=recipe.demonstrations,
            pool=shown or drawn.pool,
            prefix=task.prefix,
            forms={},
            seed=recipe.seed,
            in_order=bool(shown),
        )
        alone = Context(instruction=task.prefix or None)
        reads = method.context or method.teacher

        def prepared(what: str, rows: Sequence[Row]) -> RenderedRows:
            contexts = demonstrator.contexts(0, rows, what) if reads else alone
            return RenderedRows.of(what, rows, form, contexts, gold=True, student=alone)

        learnt = prepared("training row", drawn.training)
        validation = None
        if method.learns and drawn.validation:
            validation = prepared(VALIDATION, drawn.validation)
        sets = [(one, prepared(one.name, one.rows)) for one in drawn.sets]
        windows = Teaching(recipe, models, form, recorder, display).windows
        answered = [rows for _, rows in sets] + ([validation] if validation else [])
        asked = [*answered, *([learnt] if method.learns else [])]
        known = [len(ids) for ids in learnt.gold if ids]
        limit = recipe.teacher.max_new_tokens or completion_limit(asked, known, windows)
        for rows in answered:
            rows.check(limit, windows)
        if method.learns:
            learnt.check(limit if recipe.teacher.completions == "teacher" else 0, windows)
        return cls(
            recipe=recipe,
            method=method,
            task=task,
            drawn=drawn,
            models=models,
            form=form,
            learnt=learnt,
            validation=validation,
            sets=sets,
            max_new_tokens=limit,
            store=store,
            recorder=recorder,
            display=display,
        )

    def run(self, folder: Path, name: str, varied: dict[str, Any]) -> Cell:
        """Does the cell's work and writes its folder, which exists; of several processes, the main one writes.

        What an interrupted call has left there is gone on from.
        """
        (folder / cell_record.SCRATCH).mkdir(exist_ok=True)
        self.recorder.keep_at(folder / cell_record.SCRATCH / "phases.json")
        if not self.method.learns:
            return self._finish(folder, name, varied, None)
        trained = self._train(folder)
        models = self.models.made_whole(lambda: load_models(self.recipe, self.display))
        learnt = replace(self, models=models)
        if self.recipe.student.save and processes.is_main():
            self.recipe.tuning.save(cast(Any, models.student.network), folder)
        return learnt._finish(folder, name, varied, trained)

    def _finish(
        self, folder: Path, name: str, varied: dict[str, Any], trained: CellTraining | None
    ) -> Cell:
        """Lets the method answer all sets, and writes the cell."""
        set_seed(self.recipe.seed)
        scores: list[SetScore] = []
        told: list[CellPrediction] = []
        for one, rows in self.sets:
            with self.recorder.phase("evaluate"):
                score, lines = self._judge(one, rows)
            scores.append(score)
            told += lines
        weights = (p for p in self.models.student.network.parameters() if p.requires_grad)
        shipped = sum(p.numel() * p.element_size() for p in weights) if trained else 0
        self.recorder.add_other_processes()
        cell = cell_record.describe(
            self.recipe,
            name=name,
            varied=varied,
            recorder=self.recorder,
            dtype=self.models.student.dtype,
            task=self.task.name,
            labels=[],
            prompt_tokens_mean=mean(
                len(ids) for _, rows in self.sets for ids in rows.prompts(self.method)
            ),
            scores=scores,
            teacher=[],
            training=trained,
            reused=sorted(self.recorder.reused),
            shipped_bytes=shipped,
            left_out=self.drawn.left_out,
        )
        if processes.is_main():
            cell_record.write(folder, cell, told)
            shutil.rmtree(folder / cell_record.SCRATCH)
        return cell

    @property
    def _teaching(self) -> Teaching:
        return Teaching(self.recipe, self.models, self.form, self.recorder, self.display)

    @property
    def _objective(self) -> Objective:
        return CrossEntropy() if self.method.learns == "labels" else self.recipe.objective

    def _pairs(self) -> list[AlignedPair]:
        """What is learnt."""
        rows = self.learnt
        if self.method.learns == "labels":
            completions = list(enumerate(rows.need_gold()))
        else:
            limit = self.max_new_tokens
            completions, _ = self._teaching.completions(
                rows, max_new_tokens=limit, store=self.store
            )
        if self.method.context_in_training:
            rows = replace(rows, student_prompts=rows.teacher_prompts)
        return rows.pairs(sorted(completions), self._teaching.windows)

    def teach(self) -> Lessons:
        """Does the teacher's part: what is learnt."""
        return self._teaching.lessons(self._pairs(), self._objective, self.store)

    def _train(self, folder: Path) -> CellTraining:
        """What training did."""
        lessons = self.teach()
        network: Any = self.models.student.network
        scratch = folder / cell_record.SCRATCH
        watch = Watch(self, self.validation, scratch) if self.validation else None
        set_seed(self.recipe.seed)
        with self.recorder.phase("train"):
            report = trainer.train(
                network,
                lessons,
                objective=self._objective,
                settings=self.recipe.training,
                seed=self.recipe.seed,
                pad_id=self.models.student.pad_id,
                checkpoints=scratch,
                advance=lambda steps, tokens: self.recorder.count(
                    "train", tokens=tokens, steps=steps
                ),
                display=self.display,
                online=self._teaching.online(lessons.pairs, self._objective),
                observe=watch.observe if watch else None,
                at_steps=self.recipe.evaluation.at_steps,
                curves=folder / callbacks.CURVES,
            )
        trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
        return CellTraining(
            rows=len(lessons),
            steps=report.steps,
            trainable_parameters=trainable,
            trainable_share=trainable / sum(p.numel() for p in network.parameters()),
            loss=report.loss,
            checkpoints=watch.keep_best() if watch else [],
        )

    def answers(self, rows: RenderedRows, what: str) -> list[str]:
        """What the method writes for each row; each process of a launch answers its share."""
        prompts = rows.prompts(self.method)
        mine = processes.share(len(prompts))
        decoding = Decoding(self.max_new_tokens, batch_size=self.recipe.evaluation.batch_size)
        form = self.form
        adapter = self.models.adapter(on=self.method.learns is not None)
        with adapter, self.display.bar(what, len(mine)) as bar:
            made = generate(
                self.models.model(self.method),
                [prompts[number] for number in mine],
                form.ending,
                decoding,
                advance=self.recorder.advance("evaluate", bar.advance),
            )
        return processes.put_together(form.decode(one.ids) for one in made)

    def right(self, rows: RenderedRows, written: Sequence[str]) -> list[bool]:
        """Whether each answer is right."""
        return [
            self.task.right(text, row.output or "")
            for text, row in zip(written, rows.rows, strict=True)
        ]

    def gold_score(self, rows: RenderedRows) -> Likelihood:
        """How the method predicts the rows' gold answers; the main process reads them."""
        (found,) = processes.main_does(
            lambda: likelihoods(
                self.models,
                rows,
                rows.need_gold(),
                [self.method],
                compare=self.recipe.method == "distillation",
                batch_size=self.recipe.evaluation.batch_size,
                advance=self.recorder.advance("evaluate", lambda done: None),
            )
        )
        return found

    def _judge(
        self, one: EvaluationSet, rows: RenderedRows
    ) -> tuple[SetScore, list[CellPrediction]]:
        written = self.answers(rows, f"{self.method.label} answers {one.name}")
        gold = self.gold_score(rows)
        right, lines = self.right(rows, written), []
        for number, (row, text, correct) in enumerate(zip(rows.rows, written, right, strict=True)):
            expected, told = _shown(row.output or ""), _shown(text)
            if not correct and told == expected:  # a number that the task wants to be marked
                told = ""
            lines.append(
                CellPrediction(
                    set=one.name,
                    row=number,
                    input=row.input,
                    expected=expected,
                    predicted=expected if correct else told,
                    probabilities={},
                    written=text,
                )
            )
        score = SetScore(
            name=one.name,
            domain=one.domain,
            accuracy=proportion(right),
            chance=0.0,
            majority=0.0,
            calibration_error=None,
            cross_entropy=gold.cross_entropy,
            verbalizer_mass=None,
            confusion={},
            fidelity=gold.fidelity,
            single_contexts=[],
        )
        return score, lines


def _form(recipe: Recipe) -> Prompt:
    """How a row is put to the models: the task has written it already."""
    return recipe.prompt.model_copy(update={"pattern": "{input}"})


def _shown(text: str) -> str:
    """The number that a text comes to, as text; empty if there is none."""
    number = final_number(text)
    return "" if number is None else f"{number.normalize():f}"
