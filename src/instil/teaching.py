"""What comes before training: the models, the completions that are learnt, the teacher's targets for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PreTrainedModel

from instil import processes
from instil.alignment import AlignedPair
from instil.cache import alike
from instil.config import Recipe
from instil.context import Context
from instil.evaluation import Judged
from instil.forward import output_embeddings
from instil.generation import Decoding, Generated, generate
from instil.kept_completions import keep
from instil.kept_outcomes import Kept
from instil.model import LanguageModel, check_same_tokens, load, resolve
from instil.objective import Objective
from instil.online import OnlineTeacher
from instil.prepared import PreparedRows, Windows
from instil.progress import Display
from instil.prompt import prompt_format
from instil.resources import Recorder
from instil.store import StorePlan, TargetStore, build
from instil.targets import TargetRow, Targets
from instil.teacher import Scorer
from instil.training import shared_out

UNKNOWN_LENGTH = 256  # limit of an answer, in tokens, when no answer is known


def load_judged(recipe: Recipe, context: Context, form: Any, display: Display) -> Judged:
    """Loads teacher and student: one copy of the weights, with an adapter, unless the teacher is another model.

    Args:
        recipe: Names them.
        context: What the teacher reads, where it is the same for all rows.
        form: How a row is put to them; the recipe's prompt settings.
        display: Shows progress.

    Raises:
        UnknownModelError: there is no such model.
        TokenizerMismatchError: the two models' tokens differ.
        TuningError: the model does not allow the tuning.
    """
    display.note(f"loading {recipe.model}")
    student = load(recipe.model, dtype=recipe.dtype)
    teaching = student
    other = recipe.teacher.model
    if other is not None and resolve(other) != resolve(recipe.model):
        display.note(f"loading {other}")
        teaching = load(other, dtype=student.dtype)
        check_same_tokens(teaching, student)
    adapted = recipe.tuning.apply(student.network, seed=recipe.seed)
    adapted.eval()
    shared = teaching is student
    student = replace(student, network=cast(PreTrainedModel, adapted))
    return Judged(
        teacher=student if shared else teaching,
        student=student,
        prompt_format=prompt_format(student.tokenizer, form),
        context=context,
    )


def made_whole(judged: Judged, recipe: Recipe, form: Any, display: Display) -> Judged:
    """The same after training, with a student that one process can run: where FSDP has shared its layers out, loaded anew.

    All processes of a launch have to call it.

    Args:
        judged: From `load_judged`, and trained.
        recipe: As it was given there.
        form: The same.
        display: Shows progress.
    """
    trained = shared_out(judged.student.network)
    if trained is None:
        return judged
    again = load_judged(recipe, judged.context, form, display)
    for name, weight in again.student.network.named_parameters():
        if name in trained:
            weight.data.copy_(trained[name])
    return again


@dataclass(frozen=True)
class Teaching:
    """A teacher at work for one run.

    Attributes:
        recipe: Its settings.
        judged: The models.
        recorder: Told what it costs.
        display: Shows progress.
    """

    recipe: Recipe
    judged: Judged
    recorder: Recorder
    display: Display

    @property
    def windows(self) -> Windows:
        """Of the models."""
        return Windows(teacher=self.judged.teacher.window, student=self.judged.student.window)

    @property
    def kept(self) -> Kept:
        """Which outcomes of a token the targets tell apart."""
        return Kept.of(self.recipe.teacher, self.recipe.objective)

    @property
    def vocabulary(self) -> int:
        """Outcomes of the targets: as many as the student's output layer has, padding included."""
        return int(cast(Any, output_embeddings(self.judged.student.network)).weight.shape[0])

    def fingerprint(self, pairs: Sequence[AlignedPair]) -> str:
        """Of all that the teacher's targets for these pairs depend on."""
        model, temperature = self.judged.teacher, self.recipe.objective.temperature
        outcomes = [self.vocabulary, self.kept.model_dump()]
        settings = [model.fingerprint, model.dtype, temperature, *outcomes]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for pair in pairs:
            for ids in (pair.teacher_prompt, pair.completion):
                digest.update(np.array([len(ids), *ids], np.int32).tobytes())
        return digest.hexdigest()

    def completions(
        self, rows: PreparedRows, *, max_new_tokens: int, store: Path | None = None
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

    def write(self, rows: PreparedRows, decoding: Decoding) -> list[Generated]:
        """What the teacher answers; of several processes, each lets it answer its share of the rows."""
        prompts = rows.teacher_prompts
        mine = processes.share(len(prompts))
        with (
            self.recorder.phase("generate"),
            self.judged.adapter(on=False),
            self.display.bar("teacher writes completions", len(mine)) as bar,
        ):
            advance = self.recorder.advance("generate", bar.advance)
            made = generate(
                self.judged.teacher,
                [prompts[number] for number in mine],
                self.judged.prompt_format,
                decoding,
                advance=advance,
                numbers=mine,
            )
            return processes.put_together(made)

    def _kept(
        self, rows: PreparedRows, decoding: Decoding, folder: Path
    ) -> tuple[list[Generated], dict[str, float]]:
        """What the teacher answers, read if it has been asked the same before; and what that has cost all processes."""
        model, form = self.judged.teacher, self.judged.prompt_format
        drawn = [decoding.temperature, decoding.seed if decoding.temperature else None]
        ends = [form.end_ids, form.stop, decoding.max_new_tokens]
        asked = json.dumps([model.fingerprint, model.dtype, *drawn, *ends, rows.teacher_prompts])
        path = folder / f"completions-{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"

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
        return OnlineTeacher.of(self.judged.teacher, prompts, lambda: self.judged.adapter(on=False))

    def _stored(self, pairs: Sequence[AlignedPair], store: Path) -> TargetStore:
        fingerprint = self.fingerprint(pairs)
        path = (self.recipe.teacher.store or store) / fingerprint[:32]
        plan = StorePlan(
            fingerprint=fingerprint,
            lengths=[len(pair.completion) for pair in pairs],
            vocabulary=self.vocabulary,
            temperature=self.recipe.objective.temperature,
            kept=self.kept,
            teacher=f"{self.judged.teacher.name}, {self.judged.teacher.dtype}",
        )
        measured = Recorder()
        path.parent.mkdir(parents=True, exist_ok=True)
        costs = path.with_name(path.name + ".spent.json")
        measured.keep_at(costs)
        with (
            self.judged.adapter(on=False),
            self.display.bar("teacher scores completions", len(pairs)) as bar,
        ):
            ask = _Asked(self.judged.teacher, pairs, plan, self.recipe, measured, bar.advance)
            built = build(path, plan=plan, score=ask, advance=lambda rows, _: bar.advance(rows))
        measured.add_other_processes()
        if processes.is_main():
            if ask.scorer is None:  # another run may have built it while this one waited
                measured = Recorder()
                measured.keep_at(costs)
            # All that the store has ever cost: a run that goes on has had some of it in its sums.
            self.recorder.put("teach", measured.spent("teach"))
        if ask.scorer is None:
            self.recorder.reused.add("teach")
        return built


class _Asked:
    """A teacher that reads the context when it is asked for the first time.

    It costs what it takes to answer: a store that is there already is read for nothing, however often.
    """

    def __init__(
        self,
        model: LanguageModel,
        pairs: Sequence[AlignedPair],
        plan: StorePlan,
        recipe: Recipe,
        recorder: Recorder,
        show: Callable[[int], None],
    ) -> None:
        self.scorer: Scorer | None = None
        self._model, self._pairs, self._plan = model, pairs, plan
        self._groups = alike([pair.teacher_prompt for pair in pairs])
        self._place = {n: (g, p) for g, of in enumerate(self._groups) for p, n in enumerate(of)}
        self._group = -1
        self._batch_size, self._recorder = recipe.evaluation.batch_size, recorder
        self._advance = recorder.advance("teach", show)

    def __call__(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[int], Targets]]:
        with self._recorder.phase("teach"):
            places = sorted(self._place[number] for number in numbers)
            for group, of_group in groupby(places, key=itemgetter(0)):
                # No name for the scorer: it would keep this context's keys and values while the next one is read.
                for place, targets in self._of(group).score([place for _, place in of_group]):
                    number = self._groups[group][place]
                    yield number, self._pairs[number].completion, targets

    def _of(self, group: int) -> Scorer:
        """What scores the pairs of one context, which it has read; one at a time, for a context takes memory."""
        if self.scorer is None or group != self._group:
            self._group, self.scorer = group, None  # the one before is let go first
            self.scorer = Scorer.of(
                self._model,
                [self._pairs[number] for number in self._groups[group]],
                vocabulary=self._plan.vocabulary,
                kept=self._plan.kept,
                temperature=self._plan.temperature,
                batch_size=self._batch_size,
                advance=self._advance,
            )
        return self.scorer


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


def completion_limit(sets: Sequence[PreparedRows], known: Sequence[int], windows: Windows) -> int:
    """Limit of an answer where none is given: room to spare over the longest known one, as far as the windows allow.

    Args:
        sets: All rows that will be answered.
        known: Lengths of known answers, in tokens.
        windows: Of the models.
    """
    longest = max(known, default=0)
    limit = 2 * longest + 8 if known else UNKNOWN_LENGTH
    for window, prompts in (
        (windows.teacher, [ids for rows in sets for ids in rows.teacher_prompts]),
        (windows.student, [ids for rows in sets for ids in rows.student_prompts]),
    ):
        if window is not None:
            limit = min(limit, window - max(map(len, prompts)))
    return max(limit, longest, 1)
