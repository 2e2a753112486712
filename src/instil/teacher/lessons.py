"""The teacher's targets for what is learnt, computed once; and what training reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from instil.losses import Objective
from instil.models.cache import alike
from instil.models.forward import output_embeddings
from instil.models.generate import Decoding, Generated, generate
from instil.models.roles import Models
from instil.prompts.format import PromptFormat
from instil.prompts.pair import AlignedPair
from instil.prompts.rendered import RenderedRows, Windows
from instil.recipe.canonical import selection_of
from instil.recipe.recipe import Recipe
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.files import digest
from instil.system.progress import Display
from instil.targets.prediction import TargetRow, Targets
from instil.targets.selection import Selection
from instil.targets.store import StorePlan, TargetStore, build
from instil.teacher.completions import keep
from instil.teacher.hidden_states import OnlineTeacher
from instil.teacher.scorer import Scorer


@dataclass(frozen=True)
class Teaching:
    """A teacher at work for one run.

    Attributes:
        recipe: Its settings.
        models: Teacher and student.
        form: Renders the prompts.
        recorder: Told what it costs.
        display: Shows progress.
    """

    recipe: Recipe
    models: Models
    form: PromptFormat
    recorder: Recorder
    display: Display

    @property
    def windows(self) -> Windows:
        """Of the models."""
        return Windows(teacher=self.models.teacher.window, student=self.models.student.window)

    @property
    def kept(self) -> Selection:
        """Which outcomes of a token the targets tell apart."""
        return selection_of(self.recipe.teacher, self.recipe.objective)

    @property
    def vocabulary(self) -> int:
        """Outcomes of the targets: as many as the student's output layer has, padding included."""
        return int(cast(Any, output_embeddings(self.models.student.network)).weight.shape[0])

    def fingerprint(self, pairs: Sequence[AlignedPair]) -> str:
        """Of all that the teacher's targets for these pairs depend on."""
        model, temperature = self.models.teacher, self.recipe.objective.temperature
        outcomes = [self.vocabulary, self.kept.model_dump()]
        settings = [model.fingerprint, model.dtype, temperature, *outcomes]
        return digest([settings, [[pair.teacher_prompt, pair.completion] for pair in pairs]])

    def completions(
        self, rows: RenderedRows, *, max_new_tokens: int, store: Path | None = None
    ) -> tuple[list[tuple[int, list[int]]], int]:
        """What the student learns to predict, gold outputs or what the teacher writes: (number of the row, ids).

        Args:
            rows: With gold outputs, or without.
            max_new_tokens: Limit of what the teacher writes.
            store: Folder where what it has written is kept, where the recipe names none; None: nowhere.

        Returns:
            With how many of them were cut at the limit.
        """
        settings = self.recipe.teacher
        if settings.completions == "gold":
            return list(enumerate(rows.need_gold())), 0
        learnt: list[tuple[int, list[int]]] = []
        truncated = 0
        for sample in range(settings.samples):
            decoding = Decoding(
                max_new_tokens=max_new_tokens,
                temperature=settings.sampling_temperature,
                seed=self.recipe.seed * settings.samples + sample,
                batch_size=self.recipe.evaluation.batch_size,
            )
            folder = settings.store or store
            if folder:
                made, spent = self._kept(rows, decoding, folder)
                # All that they have ever cost: a run that goes on has had some of it in its sums.
                (self.recorder.add if sample else self.recorder.put)("generate", spent)
            else:
                made = self.write(rows, decoding)
            truncated += sum(not one.finished for one in made)
            learnt += [(n, one.ids) for n, one in enumerate(made)]
        if truncated:
            self.display.warn(
                f"{truncated} of {len(learnt)} completions were cut at {max_new_tokens} "
                "tokens; a larger --max-new-tokens lets the teacher finish"
            )
        return learnt, truncated

    def write(self, rows: RenderedRows, decoding: Decoding) -> list[Generated]:
        """What the teacher answers; of several processes, each lets it answer its share of the rows."""
        prompts = rows.teacher_prompts
        mine = processes.share(len(prompts))
        with (
            self.recorder.phase("generate"),
            self.models.adapter(on=False),
            self.display.bar("teacher writes completions", len(mine)) as bar,
        ):
            advance = self.recorder.advance("generate", bar.advance)
            made = generate(
                self.models.teacher,
                [prompts[number] for number in mine],
                self.form.ending,
                decoding,
                advance=advance,
                numbers=mine,
            )
            return processes.put_together(made)

    def _kept(
        self, rows: RenderedRows, decoding: Decoding, folder: Path
    ) -> tuple[list[Generated], dict[str, float]]:
        """What the teacher answers, read if it has been asked the same before; and what that has cost all processes."""
        model, form = self.models.teacher, self.form
        drawn = [decoding.temperature, decoding.seed if decoding.temperature else None]
        ends = [form.end_ids, form.stop, decoding.max_new_tokens]
        asked = [model.fingerprint, model.dtype, *drawn, *ends, rows.teacher_prompts]
        path = folder / f"completions-{digest(asked)[:32]}.json"

        def write() -> tuple[list[Generated], dict[str, float]]:
            measured = Recorder()
            made = replace(self, recorder=measured).write(rows, decoding)
            measured.add_other_processes()
            return made, measured.spent("generate")

        kept = keep(path, write)
        if kept.reused:
            self.recorder.reused.add("generate")
        spent = kept.spent if processes.is_main() else Recorder().spent("generate")
        return kept.completions, spent

    def lessons(
        self,
        pairs: Sequence[AlignedPair],
        objective: Objective,
        store: Path,
    ) -> Lessons:
        """What training reads, row by row; the teacher scores it once and for all that share the store.

        Args:
            pairs: What is learnt.
            objective: The loss.
            store: Folder of target stores, where the recipe names none.
        """
        online = objective.needs_hidden_states
        if not objective.needs_targets:
            return Lessons(pairs, None, [], teacher_prompts=online)
        # Pairs of one context lie together, so that it is read once.
        order = [n for group in alike([one.teacher_prompt for one in pairs]) for n in group]
        kept = self._stored([pairs[number] for number in order], store)
        places = sorted(range(len(order)), key=order.__getitem__)
        return Lessons(pairs, kept, places, teacher_prompts=online)

    def online(self, pairs: Sequence[AlignedPair], objective: Objective) -> OnlineTeacher | None:
        """A teacher that runs beside the student, for losses that need one."""
        if not objective.needs_hidden_states:
            return None
        prompts = [pair.teacher_prompt for pair in pairs]
        return OnlineTeacher.of(self.models.teacher, prompts, lambda: self.models.adapter(on=False))

    def _stored(self, pairs: Sequence[AlignedPair], store: Path) -> TargetStore:
        fingerprint = self.fingerprint(pairs)
        path = (self.recipe.teacher.store or store) / fingerprint[:32]
        plan = StorePlan(
            fingerprint=fingerprint,
            lengths=[len(pair.completion) for pair in pairs],
            vocabulary=self.vocabulary,
            temperature=self.recipe.objective.temperature,
            kept=self.kept,
            teacher=f"{self.models.teacher.name}, {self.models.teacher.dtype}",
        )
        measured = Recorder()
        path.parent.mkdir(parents=True, exist_ok=True)
        costs = path.with_name(path.name + ".spent.json")
        measured.keep_at(costs)
        asked: list[int] = []
        with (
            self.models.adapter(on=False),
            self.display.bar("teacher scores completions", len(pairs)) as bar,
        ):
            scorer = Scorer.of(
                self.models.teacher,
                pairs,
                vocabulary=plan.vocabulary,
                kept=plan.kept,
                temperature=plan.temperature,
                batch_size=self.recipe.evaluation.batch_size,
                advance=measured.advance("teach", bar.advance),
            )

            def score(numbers: Sequence[int]) -> Iterator[tuple[int, list[int], Targets]]:
                asked.extend(numbers)
                with measured.phase("teach"):
                    for number, targets in scorer.score(numbers):
                        yield number, pairs[number].completion, targets

            built = build(path, plan=plan, score=score, advance=lambda rows, _: bar.advance(rows))
        measured.add_other_processes()
        if processes.is_main():
            known = measured
            if not asked:  # another run may have built it while this one waited
                known = Recorder()
                known.keep_at(costs)
            # All that the store has ever cost: a run that resumes has some of it in its sums.
            self.recorder.put("teach", known.spent("teach"))
        if not asked:
            self.recorder.reused.add("teach")
        return built


@dataclass(frozen=True)
class Lessons(Sequence[TargetRow]):
    """Pairs with their stored targets, read when they are asked for.

    Attributes:
        pairs: What is learnt.
        store: Targets of the same rows; None if none are needed.
        places: Where each pair's targets lie in the store.
        teacher_prompts: Whether an online teacher reads its prompts.
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
