"""The teacher's completions, stored on disk, so that the same ones are never generated again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from instil.engines.started import Started, identity
from instil.models.generate import Decoding, Ending, Generated, completed
from instil.models.roles import Models
from instil.prompts.rendered import RenderedRows
from instil.recipe.recipe import Recipe
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.environment import ALGORITHM
from instil.system.files import digest_ids
from instil.system.locks import hold
from instil.system.progress import Display
from instil.system.sequences import Computed
from instil.teacher.journal import Journal, Written


@dataclass(frozen=True)
class Writer:
    """Generates the teacher's completions, or reads them from the disk.

    Attributes:
        recipe: Settings of the completions and their folder.
        models: Teacher and student.
        ending: What ends a completion.
        store: Folder of the files if the recipe sets none.
        recorder: Counts their cost.
        display: Shows progress.
        engine: Writes in place of the teacher's model; None: the model itself.
    """

    recipe: Recipe
    models: Models
    ending: Ending
    store: Path
    recorder: Recorder
    display: Display
    engine: Started | None = None

    def learnt(
        self, rows: RenderedRows, *, max_new_tokens: int
    ) -> tuple[Sequence[tuple[int, list[int]]], int]:
        """The completions that the student learns to predict: gold outputs, or the teacher's.

        Args:
            rows: The training rows.
            max_new_tokens: Maximum tokens of a completion that the teacher generates.

        Returns:
            Completions as (number of the row, token ids), and how many were cut at the maximum.
        """
        settings = self.recipe.teacher
        if settings.completions == "gold":
            return rows.gold_of_rows(), 0
        learnt: list[tuple[int, list[int]]] = []
        truncated = 0
        for decoding in self.decodings(max_new_tokens):
            made = self.stored(rows.teacher_prompts, decoding)
            truncated += sum(not completion.finished for completion in made)
            learnt += [(n, completion.ids) for n, completion in enumerate(made)]
        if truncated:
            self.display.warn(
                f"{truncated} of {len(learnt)} completions were cut at {max_new_tokens} "
                "tokens; increase teacher.max_new_tokens so that the teacher can finish"
            )
        return learnt, truncated

    def decodings(self, max_new_tokens: int) -> list[Decoding]:
        """How the completions of the training rows are decoded: one for each sample of a row."""
        settings = self.recipe.teacher
        return [
            Decoding(
                max_new_tokens=max_new_tokens,
                temperature=settings.sampling_temperature,
                seed=self.recipe.seed * settings.samples + sample,
                batch_size=self.recipe.evaluation.batch_size,
            )
            for sample in range(settings.samples)
        ]

    def journal(
        self,
        prompts: Sequence[list[int]],
        decoding: Decoding,
        *,
        worker: str | None = None,
        share: float = 1.0,
    ) -> Journal:
        """Where the completions of prompts are kept; see `stored`, and `Journal`."""
        model, ending = self.models.teacher, self.ending
        drawn = [decoding.temperature, decoding.seed if decoding.temperature else None]
        ends = [list(ending.ids), list(ending.stop), decoding.max_new_tokens]
        ends += ["repeats"] if decoding.stop_repeats else []
        made_by = [ALGORITHM, model.fingerprint, model.dtype, *identity(self.engine)]
        asked = digest_ids([*made_by, *drawn, *ends], prompts)
        folder = self.recipe.teacher.store or self.store
        return Journal(folder, f"completions-{asked[:32]}", worker, share)

    def with_ending(self, ending: Ending) -> Writer:
        """The same writer with something else that ends a completion."""
        return replace(self, ending=ending)

    def stored(
        self,
        prompts: Sequence[list[int]],
        decoding: Decoding,
        *,
        what: str = "teacher writes completions",
    ) -> list[Generated]:
        """The teacher's completions, read from the disk as far as they were generated before.

        If another run is writing them, this waits for it. All processes of a launch must call this.

        Args:
            prompts: Full prompts, in token ids.
            decoding: Greedy or sampled decoding, and its limits.
            what: Text for the progress bar.
        """
        journal, count = self.journal(prompts, decoding), len(prompts)

        def begin() -> Written:
            found = journal.read()
            if len(found.completions) < count:
                held.enter_context(hold(journal.lock, of=journal.folder, wait=True))
                found = journal.read()  # another run may have written them meanwhile
            return found

        with ExitStack() as held:
            found = processes.main_does(begin)
            if len(found.completions) == count:
                self.recorder.reused.add("generate")
            else:
                self.write(prompts, decoding, journal, known=found.completions, what=what)
                processes.wait()
                found = processes.main_does(journal.read)
        # The stored cost is that of all processes, so only the main process counts it. It is all
        # that these completions have ever cost: a run that resumes has part of it in its sums.
        spent = found.spent if processes.is_main() else Recorder().spent("generate")
        self.recorder.put("generate", spent)
        return [found.completions[number] for number in range(count)]

    def write(
        self,
        prompts: Sequence[list[int]],
        decoding: Decoding,
        journal: Journal,
        *,
        known: Collection[int],
        what: str,
    ) -> None:
        """Generates the completions that are missing, each process its share.

        Args:
            prompts: Full prompts, in token ids.
            decoding: Greedy or sampled decoding, and its limits.
            journal: Where they are kept.
            known: Numbers of the prompts whose completions are there.
            what: Text for the progress bar.
        """
        mine = processes.share(len(prompts))
        there = {place for place, number in enumerate(mine) if number in known}
        with (
            self.models.adapter(on=False),
            self.display.bar(what, len(mine)) as bar,
        ):
            bar.advance(len(there))
            model = self.models.teacher
            write = self.engine.engine.completed if self.engine else partial(completed, model)
            batches = write(
                Computed.picked(prompts, mine), self.ending, decoding, numbers=mine, known=there
            )
            measured = Recorder()
            while True:
                with measured.phase("generate"):
                    places, made, tokens = next(batches, (None, [], 0))
                if places is None:
                    return
                measured.count("generate", tokens=tokens, steps=int(len(places) > 0))
                if places:
                    spent = measured.spent("generate")
                    journal.append([mine[place] for place in places], made, spent)
                    bar.advance(len(places))
                    measured = Recorder()
