"""One run from end to end: load, generate, teach, train, evaluate, write.

Each stage leaves a file in the staging folder and is skipped when that file is there, so an interrupted run goes on
where it stopped. Everything that can be refused is refused before the folder is made. The processes of a launch share the
teacher's work and the training; the main one alone writes, and judges.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from transformers import set_seed

from instil.evaluation import answers, drift, fidelity
from instil.methods import RUN_METHODS, RunMethodName
from instil.models.generate import Decoding
from instil.models.roles import Models
from instil.pipeline.folder import Staging
from instil.pipeline.given import Given
from instil.pipeline.loading import load_models
from instil.pipeline.record import Finished
from instil.prompts.context import Context
from instil.prompts.format import PromptFormat, prompt_format
from instil.prompts.pair import AlignedPair
from instil.prompts.rendered import RenderedRows, Windows, completion_limit
from instil.recipe.recipe import Recipe
from instil.results.cell import NO_MATTER
from instil.results.schema import Fidelity, MethodResult, Pair, PhaseCost, Prediction
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.environment import VERSION
from instil.system.files import written_whole
from instil.system.progress import Display
from instil.tasks.rows import digest
from instil.tasks.split import split
from instil.teacher.lessons import Lessons, Teaching
from instil.training import callbacks, trainer

FIXED_BYTES = 16 * 2**20  # report, predictions, results

# What the stages leave for a run that goes on, and a finished run does not keep.
COMPLETIONS, TARGETS, PHASES = "completions.json", "targets", "phases.json"
CHECKPOINTS = "checkpoints"
INTERMEDIATE = (COMPLETIONS, TARGETS, PHASES, CHECKPOINTS)


def run(
    recipe: Recipe,
    given: Given,
    *,
    output: Path,
    overwrite: bool = False,
    display: Display,
) -> Path:
    """Distils a context into an adapter and judges it.

    Args:
        recipe: All settings.
        given: Context and rows.
        output: Folder of the run.
        overwrite: Replace what is there.
        display: Shows progress.

    Raises:
        InstilError: something in the input, the models or the machine does not allow the run; nothing is left behind.
        KeyboardInterrupt: Ctrl-C; the same call goes on from there.
    """
    callbacks.check_tensorboard(recipe.training)
    trainer.check(recipe.training, recipe.objective, None)
    staging = Staging(output, overwrite=overwrite)
    recorder = Recorder()
    with recorder.phase("load"):
        job = Job.prepare(recipe, given, recorder, display)
    with staging.open(job.identity, needed_bytes=job.needed_bytes) as folder:
        recorder.keep_at(folder / PHASES)
        completions = job.completions(folder)
        trained = job.train(folder, completions)
        recorder.add_other_processes()
        job = job.whole()
        processes.main_does(lambda: job.evaluate(trained, completions).write(folder))
        staging.finish(without=INTERMEDIATE)
    return output


def teach(recipe: Recipe, given: Given, *, store: Path, display: Display) -> Lessons:
    """Does the teacher's part of a run: writes the targets that it would learn from, and nothing else.

    Args:
        recipe: All settings.
        given: Context and rows.
        store: Folder of target stores, where the recipe names none.
        display: Shows progress.
    """
    job = Job.prepare(recipe, given, Recorder(), display)
    with TemporaryDirectory() as scratch:
        pairs = job.pairs(job.completions(Path(scratch)))
    return job.teaching.lessons(pairs, recipe.objective, store)


@dataclass(frozen=True)
class _Completions:
    """Completion ids: of the training rows (several a row if sampled), and of the held-out rows.

    Attributes:
        training: (number of the input, ids).
        held_out: Of each evaluation row.
        truncated: How many of the teacher's training completions were cut at the limit.
    """

    training: list[tuple[int, list[int]]]
    held_out: list[list[int]]
    truncated: int


@dataclass(frozen=True)
class Job:
    """A run whose every input has been checked."""

    recipe: Recipe
    inputs: RenderedRows
    held_out: RenderedRows
    context: Context
    models: Models
    form: PromptFormat
    windows: Windows
    max_new_tokens: int
    recorder: Recorder
    display: Display

    @classmethod
    def prepare(cls, recipe: Recipe, given: Given, recorder: Recorder, display: Display) -> Job:
        """Splits the rows, loads the models and refuses what they cannot do."""
        context = given.context
        rows = split(
            given.inputs,
            given.held_out,
            context.demonstrations,
            seed=recipe.seed,
            allow_overlap=recipe.data.allow_overlap,
        )
        models = load_models(recipe, display)
        windows = Windows(teacher=models.teacher.window, student=models.student.window)
        form = prompt_format(models.student.tokenizer, recipe.prompt)
        learnt_gold = recipe.teacher.completions == "gold"
        inputs = RenderedRows.of("input", rows.inputs, form, context, gold=learnt_gold)
        held_out = RenderedRows.of("evaluation row", rows.evaluation, form, context, gold=True)
        if learnt_gold:
            inputs.need_gold()
        shots = [form.completion_ids(row) for row in context.demonstrations]
        known = [len(ids) for ids in [*shots, *inputs.gold, *held_out.gold] if ids]
        limit = recipe.teacher.max_new_tokens or completion_limit(
            [inputs, held_out], known, windows
        )
        for prepared in (inputs, held_out):
            prepared.check(limit, windows)
        return cls(
            recipe, inputs, held_out, context, models, form, windows, limit, recorder, display
        )

    @property
    def identity(self) -> str:
        """Changes when anything changes that the run's result depends on."""
        return self._fingerprint(
            recipe=self.recipe.model_dump(
                mode="json", exclude=NO_MATTER | {"data": True, "context": True}
            ),
            inputs=digest(self.inputs.rows),
            evaluation=digest(self.held_out.rows),
            version=VERSION,
        )

    def _fingerprint(self, **more: Any) -> str:
        models = {"teacher": self.models.teacher, "student": self.models.student}
        parts = {
            "models": {name: [model.fingerprint, model.dtype] for name, model in models.items()},
            "context": self.context.digest(),
            **more,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def trainable(self) -> int:
        """Parameters that training changes."""
        return sum(p.numel() for p in self.models.student.network.parameters() if p.requires_grad)

    @property
    def needed_bytes(self) -> int:
        """Space that the run will take: adapter, two checkpoints with optimiser, targets of answers as long as may be."""
        longest = len(self.inputs.rows) * self.recipe.teacher.samples * self.max_new_tokens
        token = self.teaching.kept.token_bytes(self.teaching.vocabulary)
        stored = longest * token if self.recipe.objective.needs_targets else 0
        return FIXED_BYTES + self.trainable * 4 * 7 + stored

    def completions(self, folder: Path) -> _Completions:
        """What the student learns to predict: gold outputs, or what the teacher writes under the context."""
        path = folder / COMPLETIONS
        there = processes.main_does(
            lambda: json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        )
        if there is not None:
            return _Completions(**there)
        learnt, truncated = self.teaching.completions(
            self.inputs, max_new_tokens=self.max_new_tokens
        )
        held_out = self.held_out.gold_completions
        if held_out is None:
            decoding = Decoding(self.max_new_tokens, batch_size=self.recipe.evaluation.batch_size)
            held_out = [one.ids for one in self.teaching.write(self.held_out, decoding)]
        kept = _Completions(learnt, held_out, truncated)
        if processes.is_main():
            with written_whole(path) as work:
                work.write_text(json.dumps(asdict(kept)), encoding="utf-8")
        return kept

    @property
    def teaching(self) -> Teaching:
        """The teacher at work."""
        return Teaching(self.recipe, self.models, self.form, self.recorder, self.display)

    def pairs(self, completions: _Completions) -> list[AlignedPair]:
        """What is learnt, in one order, whatever the objective."""
        return self.inputs.pairs(sorted(completions.training), self.windows)

    def train(self, folder: Path, completions: _Completions) -> trainer.TrainingReport:
        """Trains the student on stored targets."""
        pairs = self.pairs(completions)
        objective = self.recipe.objective
        rows = self.teaching.lessons(pairs, objective, folder / TARGETS)
        student = self.models.student
        with self.recorder.phase("train"):
            return trainer.train(
                cast(Any, student.network),
                rows,
                objective=objective,
                settings=self.recipe.training,
                seed=self.recipe.seed,
                pad_id=student.pad_id,
                checkpoints=folder / CHECKPOINTS,
                advance=lambda steps, tokens: self.recorder.count(
                    "train", tokens=tokens, steps=steps
                ),
                display=self.display,
                online=self.teaching.online(pairs, objective),
                curves=folder / callbacks.CURVES,
            )

    def whole(self) -> Job:
        """The same with a student that one process can run."""
        again = self.models.made_whole(lambda: load_models(self.recipe, self.display))
        return replace(self, models=again)

    def evaluate(self, trained: trainer.TrainingReport, completions: _Completions) -> Finished:
        """Scores all methods on the held-out rows."""
        set_seed(self.recipe.seed)
        size = self.recipe.evaluation.batch_size
        decoding = Decoding(max_new_tokens=self.max_new_tokens, batch_size=size)
        methods: dict[RunMethodName, MethodResult] = {}
        predictions: list[Prediction] = []
        rows = self.held_out
        pairs = rows.pairs(list(enumerate(completions.held_out)), self.windows)
        with self.recorder.phase("evaluate"):
            for name, method in RUN_METHODS.items():
                with self.display.bar(f"evaluating {method.label}", len(pairs)) as bar:
                    advance = self.recorder.advance("evaluate", bar.advance)
                    methods[name], made = answers.answer(
                        self.models, self.form, name, rows, decoding, advance=advance
                    )
                predictions += made
            with self.display.bar("comparing with the teacher", len(pairs)) as bar:
                before, after = fidelity.likelihoods(
                    self.models,
                    rows,
                    completions.held_out,
                    [RUN_METHODS["zero_shot"], RUN_METHODS["distilled"]],
                    compare=True,
                    batch_size=size,
                    advance=self.recorder.advance("evaluate", bar.advance),
                )
                assert before.fidelity is not None
                assert after.fidelity is not None
            pieces = drift.drift_pieces(self.models.student)
            with self.display.bar("measuring drift", pieces) as bar:
                drifted = drift.drift(
                    self.models, advance=self.recorder.advance("evaluate", bar.advance)
                )
        return Finished(
            recipe=self.recipe,
            inputs=self.inputs.rows,
            held_out=rows.rows,
            models=self.models,
            form=self.form,
            context=self.context,
            max_new_tokens=self.max_new_tokens,
            methods=methods,
            predictions=predictions,
            fidelity=Fidelity(
                kl_to_teacher=Pair(
                    zero_shot=before.fidelity.kl_to_teacher,
                    distilled=after.fidelity.kl_to_teacher,
                ),
                top1_agreement=Pair(
                    zero_shot=before.fidelity.agreement, distilled=after.fidelity.agreement
                ),
                n_tokens=sum(map(len, completions.held_out)),
                completions="gold" if rows.gold_completions is not None else "teacher",
            ),
            drift=drifted,
            trained=trained,
            completions=[ids for _, ids in completions.training],
            truncated=completions.truncated,
            costs={name: PhaseCost(**asdict(cost)) for name, cost in self.recorder.costs().items()},
        )
