"""A cell of a study whose answers are written: teacher scored, student trained, all sets answered and judged."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, cast

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import set_seed

from instil import cell_record, processes, tensorboard, training
from instil.alignment import AlignedPair
from instil.cell import Cell, CellPrediction, CellTraining, Checkpoint, SetScore
from instil.config import Prompt, Recipe
from instil.context import NO_CONTEXT, Context
from instil.draw import Demonstrator, Drawn, EvaluationSet, draw_for
from instil.evaluation import GoldScore, Judged, score_gold
from instil.generation import Decoding, generate
from instil.method import METHODS, Method
from instil.metrics import proportion
from instil.objective import CrossEntropy, Objective
from instil.prepared import PreparedRows
from instil.progress import Display
from instil.resources import Recorder
from instil.rows import Row
from instil.stored import read_lines, whole, write_lines
from instil.task.number import final_number
from instil.task.writing import WritingTask
from instil.teaching import Lessons, Teaching, completion_limit, load_judged, made_whole

VALIDATION = "validation rows"


@dataclass(frozen=True)
class WritingCell:
    """A cell whose every row has been rendered and fits the models."""

    recipe: Recipe
    method: Method
    task: WritingTask
    drawn: Drawn
    judged: Judged
    learnt: PreparedRows
    validation: PreparedRows | None
    sets: list[tuple[EvaluationSet, PreparedRows]]
    max_new_tokens: int
    store: Path
    recorder: Recorder
    display: Display

    @classmethod
    def prepare(cls, recipe: Recipe, store: Path, display: Display) -> WritingCell:
        """Draws and renders the rows, loads the models, and refuses what they cannot do."""
        task, method = cast(WritingTask, recipe.task), METHODS[recipe.method]
        tensorboard.check(recipe.training)
        if method.learns:
            at_steps = recipe.evaluation.at_steps
            training.check(recipe.training, recipe.objective, at_steps)
        recorder = Recorder()
        with recorder.phase("load"):
            drawn = draw_for(recipe, task.read())
            judged = load_judged(recipe, NO_CONTEXT, _form(recipe), display)
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

        def prepared(what: str, rows: Sequence[Row]) -> PreparedRows:
            contexts = demonstrator.contexts(0, rows, what) if reads else alone
            return PreparedRows.of(
                what, rows, judged.prompt_format, contexts, gold=True, student=alone
            )

        learnt = prepared("training row", drawn.training)
        validation = None
        if method.learns and drawn.validation:
            validation = prepared(VALIDATION, drawn.validation)
        sets = [(one, prepared(one.name, one.rows)) for one in drawn.sets]
        windows = Teaching(recipe, judged, recorder, display).windows
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
            judged=judged,
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
        judged = made_whole(self.judged, self.recipe, _form(self.recipe), self.display)
        learnt = replace(self, judged=judged)
        if self.recipe.student.save and processes.is_main():
            self.recipe.tuning.save(cast(Any, judged.student.network), folder)
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
        weights = (p for p in self.judged.student.network.parameters() if p.requires_grad)
        shipped = sum(p.numel() * p.element_size() for p in weights) if trained else 0
        self.recorder.add_other_processes()
        cell = cell_record.describe(
            self.recipe,
            name=name,
            varied=varied,
            recorder=self.recorder,
            dtype=self.judged.student.dtype,
            task=cast(Any, self.task).name,
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
        return Teaching(self.recipe, self.judged, self.recorder, self.display)

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
        network: Any = self.judged.student.network
        scratch = folder / cell_record.SCRATCH
        watch = _Watch(self, self.validation, scratch) if self.validation else None
        set_seed(self.recipe.seed)
        with self.recorder.phase("train"):
            report = training.train(
                network,
                lessons,
                objective=self._objective,
                settings=self.recipe.training,
                seed=self.recipe.seed,
                pad_id=self.judged.student.pad_id,
                checkpoints=scratch,
                advance=lambda steps, tokens: self.recorder.count(
                    "train", tokens=tokens, steps=steps
                ),
                display=self.display,
                online=self._teaching.online(lessons.pairs, self._objective),
                observe=watch.observe if watch else None,
                at_steps=self.recipe.evaluation.at_steps,
                curves=folder / tensorboard.FOLDER,
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

    def answers(self, rows: PreparedRows, what: str) -> list[str]:
        """What the method writes for each row; each process of a launch answers its share."""
        prompts = rows.prompts(self.method)
        mine = processes.share(len(prompts))
        decoding = Decoding(self.max_new_tokens, batch_size=self.recipe.evaluation.batch_size)
        form = self.judged.prompt_format
        adapter = self.judged.adapter(on=self.method.learns is not None)
        with adapter, self.display.bar(what, len(mine)) as bar:
            made = generate(
                self.judged.model(self.method),
                [prompts[number] for number in mine],
                form,
                decoding,
                advance=self.recorder.advance("evaluate", bar.advance),
            )
        return processes.put_together(form.decode(one.ids) for one in made)

    def right(self, rows: PreparedRows, written: Sequence[str]) -> list[bool]:
        """Whether each answer is right."""
        return [
            self.task.right(text, row.output or "")
            for text, row in zip(written, rows.rows, strict=True)
        ]

    def gold_score(self, rows: PreparedRows) -> GoldScore:
        """How the method predicts the rows' gold answers; the main process reads them."""
        return processes.main_does(
            lambda: score_gold(
                self.judged,
                rows,
                self.method,
                compare=self.recipe.method == "distillation",
                batch_size=self.recipe.evaluation.batch_size,
                advance=self.recorder.advance("evaluate", lambda done: None),
            )
        )

    def _judge(
        self, one: EvaluationSet, rows: PreparedRows
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


class _Watch:
    """Judges a student before and in the middle of its training, and remembers the best one that has learnt.

    What it has seen stands in a folder, for a training that is interrupted and goes on.
    """

    def __init__(self, cell: WritingCell, rows: PreparedRows, folder: Path) -> None:
        self.cell = cell
        self.rows = rows
        self.log, self.weights = folder / "judged.jsonl", folder / "best.safetensors"
        there = read_lines(Checkpoint, self.log) if self.log.exists() else []
        self.seen = {one.step: one for one in there}

    def observe(self, step: int) -> None:
        """Judges the student as it is now on the validation rows."""
        cell, rows = self.cell, self.rows
        with cell.recorder.instead("evaluate", of="train"):
            written = cell.answers(rows, f"judging step {step}")
            gold = cell.gold_score(rows)
        now = Checkpoint(
            step=step,
            accuracy=proportion(cell.right(rows, written)),
            cross_entropy=gold.cross_entropy,
            fidelity=gold.fidelity,
            kept=False,
        )
        best = next((one for one in self.seen.values() if one.kept), None)
        if step and (best is None or best.step == step or _rank(now) > _rank(best)):
            self.seen = {n: one.model_copy(update={"kept": False}) for n, one in self.seen.items()}
            now = now.model_copy(update={"kept": True})
            state = get_peft_model_state_dict(
                cast(Any, cell.judged.student.network), save_embedding_layers=False
            )
            processes.main_does(lambda: self._write(state))
        self.seen[step] = now
        processes.main_does(self._log)

    def _log(self) -> None:
        with whole(self.log) as work:
            write_lines(work, self.seen.values())

    def _write(self, state: dict[str, Tensor]) -> None:
        with whole(self.weights) as work:
            save_file({name: one.detach().cpu().contiguous() for name, one in state.items()}, work)

    def keep_best(self) -> list[Checkpoint]:
        """Puts the best student back, and tells which it was."""
        network: Any = self.cell.judged.student.network
        set_peft_model_state_dict(network, load_file(self.weights))
        return [one for _, one in sorted(self.seen.items())]


def _rank(one: Checkpoint) -> tuple[float, float]:
    """Of the most accurate checkpoints the one nearest to its teacher, or to the gold answers, comes first."""
    apart = one.fidelity.kl_to_teacher if one.fidelity else one.cross_entropy
    return one.accuracy.value, -apart


def _shown(text: str) -> str:
    """The number that a text comes to, as text; empty if there is none."""
    number = final_number(text)
    return "" if number is None else f"{number.normalize():f}"
