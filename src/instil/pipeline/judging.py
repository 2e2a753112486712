"""Judges methods whose answers are free text: their answers, and how close they are to the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import takewhile
from statistics import mean

from instil.engines.started import Started
from instil.evaluation.answers import Answered, answer, ends, same_start, seconds_per_answer
from instil.evaluation.fidelity import Likelihood, Told, likelihoods
from instil.evaluation.leaks import leaks
from instil.evaluation.parts import by_position, by_turn
from instil.evaluation.retention import General, decoding, retention
from instil.methods import METHODS, Method, MethodName
from instil.metrics import Metric
from instil.metrics.rules import Rule
from instil.models.generate import Decoding, Ending, Generated, prefill, stream
from instil.models.roles import Models
from instil.pipeline.keeping import base_folder
from instil.pipeline.predictions import predictions
from instil.pipeline.verdicts import Verdicts, asked_of, means, verdicts
from instil.prompts.format import PromptFormat, prompt_format
from instil.prompts.rendered import RenderedRows
from instil.recipe.canonical import methods_of
from instil.recipe.recipe import Recipe
from instil.recipe.sections import Prompt, Teacher
from instil.results.schema import Prediction
from instil.results.scores import (
    Completions,
    Leaks,
    OwnFidelity,
    Retention,
    SetScore,
    Written,
)
from instil.results.statistics import proportion
from instil.results.training import Checkpoint
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.progress import Display
from instil.system.sequences import Computed
from instil.targets.selection import Selection
from instil.tasks.free_text import FreeText
from instil.tasks.rows import Row, answer_number
from instil.tasks.split import EvaluationSet
from instil.teacher.completions import Writer
from instil.teacher.logged import Logged

CONTEXT_ROWS = 50
"""Most rows on which the student reads the context again."""
TOLD = 1000
"""Most outcomes of a token that rows tell and that are compared: all of them."""
LEAST_SHARED = 16
"""Tokens that all prompts must have in common for a prefix cache to matter."""


@dataclass(frozen=True)
class HeldOutCompletions:
    """The completions of a set whose likelihood is measured.

    Attributes:
        source: Where they come from.
        ids: Token ids of each row.
        answers: The teacher's answers, if it wrote them.
        told: What the rows tell of the teacher's predictions; None: its model is asked.
    """

    source: Completions
    ids: Sequence[list[int]]
    answers: list[Answered] | None = None
    told: Told | None = None


@dataclass(frozen=True)
class Judging:
    """Judges methods on sets of rows.

    Attributes:
        recipe: All settings.
        task: Decides whether an answer is right.
        models: Teacher and student.
        form: Prompt format.
        writer: Lets the teacher write.
        max_new_tokens: Most tokens of an answer.
        metrics: How answers are compared with gold outputs. The first one decides which are right;
            if there are none, the task does.
        rules: What answers must obey.
        context: What only the teacher reads, as text; None if rows have different contexts.
        recorder: Counts the cost.
        display: Shows progress.
        engine: Answers in place of the student, and of its base; None: the models themselves.
        logged: The teacher's predictions that stand in rows; None: its model makes them.
    """

    recipe: Recipe
    task: FreeText
    models: Models
    form: PromptFormat
    writer: Writer
    max_new_tokens: int
    metrics: Sequence[Metric]
    rules: Sequence[Rule]
    context: str | None
    recorder: Recorder
    display: Display
    engine: Started | None = None
    logged: Callable[[Sequence[Row]], Logged] | None = None
    _held_out: dict[str, HeldOutCompletions | None] = field(default_factory=dict)

    def held_out(self, rows: RenderedRows) -> HeldOutCompletions | None:
        """The completions whose likelihood is measured.

        They are None if a row has no output and no method uses the teacher, which could write one.
        """
        if rows.name not in self._held_out:
            gold, found = rows.gold_completions, None
            if self.logged is not None:  # the teacher's model is not the one that answered
                found = None if gold is None else self._of_rows(rows.rows, gold)
                return self._held_out.setdefault(rows.name, found)
            # A logged answer may be another model's. What is learnt is the teacher's own.
            logged = self.recipe.teacher.completions == "teacher" and any(
                row.turn for row in rows.rows
            )
            if gold is not None and not logged:
                found = HeldOutCompletions("gold", gold)
            elif any(METHODS[name].teacher for name in methods_of(self.recipe)):
                made = self.writer.stored(rows.teacher_prompts, self._decoding)
                answers = [Answered.of(one, self.form) for one in made]
                found = HeldOutCompletions("teacher", [one.ids for one in made], answers)
            self._held_out[rows.name] = found
        return self._held_out[rows.name]

    def _of_rows(self, rows: Sequence[Row], gold: Sequence[list[int]]) -> HeldOutCompletions:
        """The outputs of rows, with what the rows tell of the teacher's predictions."""
        assert self.logged is not None
        logged, completions = self.logged(rows), [*enumerate(gold)]
        told = Told(
            [logged.targets(*one, Selection(top_k=TOLD)) for one in completions],
            [len(logged.known(*one)) for one in completions],
        )
        return HeldOutCompletions("gold", gold, told=told)

    def written(
        self, held_out: EvaluationSet, rows: RenderedRows, names: Sequence[MethodName]
    ) -> dict[MethodName, list[Answered]]:
        """Returns each method's answers to one set."""
        return {
            name: self.answers(rows, name, f"{METHODS[name].label} answers {held_out.name}")
            for name in names
        }

    def set(
        self,
        held_out: EvaluationSet,
        rows: RenderedRows,
        written: dict[MethodName, list[Answered]],
    ) -> dict[MethodName, tuple[SetScore, list[Prediction]]]:
        """Returns each method's score on one set, and its predictions.

        Args:
            held_out: The set.
            rows: Its rows.
            written: The answers of each method.
        """
        names = [*written]
        found, own = self._compared(held_out, rows, written)
        again = self._with_context(rows, dict(zip(names, found, strict=True)).get("in_context"))
        made = {}
        for name, likelihood in zip(names, found, strict=True):
            told = self.verdicts(rows, written[name])
            lines = predictions(
                self.task,
                self.form,
                held_out.name,
                rows.rows,
                name,
                written[name],
                told.right,
                likelihood.rows if likelihood and likelihood.fidelity else (),
                told.values,
                told.rules,
            )
            score = self._score(held_out, rows, name, written, told, likelihood, own.get(name))
            if name == self.recipe.method and score.written is not None:
                more = {"with_context": again, "leaks": self._leaks(name, written)}
                whole = score.written.model_copy(update=more)
                score = score.model_copy(update={"written": whole})
            made[name] = score, lines
        return made

    def checkpoint(self, rows: RenderedRows, step: int) -> Checkpoint:
        """Evaluates the student in its current state on the validation rows."""
        name = self.recipe.method
        with self.recorder.instead("evaluate", of="train"):
            written = self.answers(rows, name, f"judging step {step}")
            (found,) = self.likelihoods(rows, [name])
        assert found is not None
        return Checkpoint(
            step=step,
            accuracy=self.verdicts(rows, written).leading,
            cross_entropy=found.cross_entropy,
            fidelity=found.fidelity,
            kept=False,
        )

    def seconds(self, name: MethodName, rows: RenderedRows, *, tokens: float) -> float:
        """Measures the seconds per query, in the main process.

        Args:
            name: The method.
            rows: Rows that are asked.
            tokens: Mean length of its answers.
        """
        method, endless = METHODS[name], Ending((), (), self.form.ending.text)
        model = self.models.model(method)

        def write(prompt: list[int], count: int) -> Iterable[object]:
            return stream(model, prompt, endless, count)

        with self.models.adapter(on=method.learns is not None):
            prompts = rows.prompts(method)
            return processes.main_does(lambda: seconds_per_answer(prompts, write, tokens=tokens))

    def seconds_warm(self, name: MethodName, rows: RenderedRows, *, tokens: float) -> float | None:
        """Measures the seconds per query if the context is in a prefix cache; see `seconds`.

        Returns None for a method without a context, and for prompts without a common beginning.
        """
        method, endless = METHODS[name], Ending((), (), self.form.ending.text)
        model, prompts = self.models.model(method), rows.prompts(method)
        ends = [min(prompts), max(prompts)]  # all others begin as these two do
        same = (one == two for one, two in zip(*ends, strict=False))
        shared = min(sum(takewhile(bool, same)), min(map(len, prompts)) - 1)
        if not method.context or method.learns is not None or shared < LEAST_SHARED:
            return None

        def measure() -> float | None:
            cache = prefill(model, prompts[0][:shared])
            if cache is None:
                return None

            def write(prompt: list[int], count: int) -> Iterable[object]:
                return stream(model, prompt[shared:], endless, count, cache=deepcopy(cache))

            return seconds_per_answer(prompts, write, tokens=tokens)

        with self.models.adapter(on=False):
            return processes.main_does(measure)

    def answers(self, rows: RenderedRows, name: MethodName, what: str) -> list[Answered]:
        """Returns the answers of a method, one per row.

        Args:
            rows: The rows.
            name: Method that answers.
            what: Text for the progress bar.
        """
        method, held_out = METHODS[name], self._held_out.get(rows.name)
        if held_out and held_out.answers and method.context and method.learns is None:
            return held_out.answers  # the teacher has answered these prompts already
        prompts = rows.prompts(method)
        if self.engine is not None and (self.models.shared or not method.context):
            return self._elsewhere(self.engine, prompts, method, what)
        with self.display.bar(what, len(processes.share(len(prompts)))) as bar:
            return answer(
                self.models,
                self.form,
                prompts,
                method,
                self._decoding,
                advance=self.recorder.advance("evaluate", bar.advance),
            )

    def _elsewhere(
        self, started: Started, prompts: Sequence[list[int]], method: Method, what: str
    ) -> list[Answered]:
        """Answers of an engine."""
        engine = started.engine if method.learns else started.engine.without_adapter
        made: dict[int, Generated] = {}
        with self.display.bar(f"{what}, on {engine.name}", len(prompts)) as bar:
            advance = self.recorder.advance("evaluate", bar.advance)
            for places, written, tokens in engine.completed(
                prompts, self.form.ending, self._decoding
            ):
                made.update(zip(places, written, strict=True))
                advance(len(places), tokens)
        return [Answered.of(made[place], self.form) for place in range(len(prompts))]

    def likelihoods(
        self, rows: RenderedRows, names: Sequence[MethodName], *, what: str = ""
    ) -> list[Likelihood | None]:
        """Measures how well methods predict the rows' completions, in the main process."""
        found = self.held_out(rows)
        if found is None:
            return [None] * len(names)
        what = what or "reading completions"
        return [*self._likelihoods(rows, found.ids, names, what, told=found.told)]

    def _likelihoods(
        self,
        rows: RenderedRows,
        completions: Sequence[list[int]],
        names: Sequence[MethodName],
        what: str,
        *,
        told: Told | None = None,
    ) -> list[Likelihood]:
        methods = [METHODS[name] for name in names]

        def read() -> list[Likelihood]:
            with self.display.bar(what, len(rows.rows)) as bar:
                return likelihoods(
                    self.models,
                    rows,
                    completions,
                    methods,
                    compare=any(method.teacher for method in methods),
                    batch_size=self.recipe.evaluation.batch_size,
                    advance=self.recorder.advance("evaluate", bar.advance),
                    told=told,
                )

        return processes.main_does(read)

    def _compared(
        self,
        held_out: EvaluationSet,
        rows: RenderedRows,
        written: dict[MethodName, list[Answered]],
    ) -> tuple[list[Likelihood | None], dict[MethodName, OwnFidelity]]:
        """How well methods predict the completions of a set, and the student's own answers.

        Both are read together, because they follow the same prompts.

        Returns:
            The likelihoods of all methods, in their order; and the fidelity of the methods without
            a context on the student's own answers.
        """
        what, known = f"comparing on {held_out.name}", self.held_out(rows)
        student = next((n for n in written if METHODS[n].teacher and not METHODS[n].context), None)
        if student is None or known is None or known.told is not None:
            return self.likelihoods(rows, [*written], what=what), {}
        own = [one.ids for one in written[student]]
        both = [ids for pair in zip(known.ids, own, strict=True) for ids in pair]
        found = self._likelihoods(_twice(rows), both, [*written], what)
        on_own = [Likelihood(one.rows[1::2]).fidelity for one in found]
        tokens = sum(map(len, own))
        return [Likelihood(one.rows[::2]) for one in found], {
            name: OwnFidelity(**one.model_dump(), tokens=tokens)
            for name, one in zip(written, on_own, strict=True)
            if one
        }

    def retention(self) -> Retention | None:
        """Compares the student with its base on general prompts; None without a student."""
        if METHODS[self.recipe.method].learns is None:
            return None
        model, size = self.models.student, self.recipe.evaluation.batch_size
        form = prompt_format(model.tokenizer, Prompt(), ends=model.end_ids)
        general = General.of(form, self.recipe.evaluation.general_prompts)
        # The base's answers are the same for all its students, so they are kept for all runs.
        writer = Writer(
            self.recipe.model_copy(update={"teacher": Teacher()}),
            Models(teacher=model, student=model),
            form.ending,
            base_folder(self.recipe, self.writer.store),
            Recorder(),
            self.display,
        )
        asked = general.rows.student_prompts
        made = writer.stored(asked, decoding(size), what="base answers general prompts")
        with self.display.bar("asking general prompts", 2 * len(general.kinds)) as bar:
            advance = self.recorder.advance("evaluate", bar.advance)
            base = [one.ids for one in made]
            return retention(self.models, form, general, base, batch_size=size, advance=advance)

    def _leaks(self, name: MethodName, written: dict[MethodName, list[Answered]]) -> Leaks | None:
        """What the student says of its context."""
        if self.context is None or "in_context" not in written or METHODS[name].context:
            return None
        teacher, student = ([one.text for one in written[of]] for of in ("in_context", name))
        return leaks(self.context, teacher, student)

    def _with_context(self, rows: RenderedRows, teacher: Likelihood | None) -> float | None:
        """How much worse the student with the context predicts the completions than its base.

        It is measured on some rows, in nats per token.
        """
        method, known = METHODS[self.recipe.method], self.held_out(rows)
        if method.learns is None or method.context or known is None or teacher is None:
            return None
        some = range(0, len(rows.rows), -(-len(rows.rows) // CONTEXT_ROWS))
        prompts = [rows.teacher_prompts[number] for number in some]
        ids = [known.ids[number] for number in some]
        window = self.models.student.window
        pairs = zip(prompts, ids, strict=True)
        if window is not None and any(len(one) + len(more) > window for one, more in pairs):
            return None
        chosen = [rows.rows[number] for number in some]
        again = replace(rows, rows=chosen, student_prompts=prompts, teacher_prompts=prompts)

        def read() -> float:
            with self.display.bar("reading the context again", len(some)) as bar:
                (told,) = likelihoods(
                    self.models,
                    again,
                    ids,
                    [method],
                    compare=False,
                    batch_size=self.recipe.evaluation.batch_size,
                    advance=self.recorder.advance("evaluate", bar.advance),
                )
            base = Likelihood([teacher.rows[number] for number in some])
            return told.cross_entropy - base.cross_entropy

        return processes.main_does(read)

    def verdicts(self, rows: RenderedRows, written: Sequence[Answered]) -> Verdicts:
        """What metrics and rules say of answers, one per row."""
        golds = [row.output and self.form.spoken(row.output) for row in rows.rows]
        return verdicts(
            [one.text for one in written],
            golds,
            [asked_of(row) for row in rows.rows],
            metrics=self.metrics,
            rules=self.rules,
            right=self.task.right,
            name=rows.name,
        )

    def _score(
        self,
        held_out: EvaluationSet,
        rows: RenderedRows,
        name: MethodName,
        written: dict[MethodName, list[Answered]],
        told: Verdicts,
        likelihood: Likelihood | None,
        own: OwnFidelity | None,
    ) -> SetScore:
        completions = self.held_out(rows)
        teacher = written.get("in_context") if name != "in_context" else None
        same = None
        if teacher is not None:
            pairs = zip(teacher, written[name], strict=True)
            same = [same_start(theirs.ids, mine.ids) for theirs, mine in pairs]
        by_row = likelihood.rows if likelihood and likelihood.fidelity else ()
        return SetScore(
            name=held_out.name,
            domain=held_out.domain,
            rows=len(rows.rows),
            accuracy=told.leading,
            cross_entropy=likelihood and likelihood.cross_entropy,
            fidelity=likelihood and likelihood.fidelity,
            tokens=completions and sum(map(len, completions.ids)),
            completions=completions and completions.source,
            written=Written(
                ends=ends(written[name]),
                metrics=means(told.values),
                rules=means(told.rules),
                same_answer=same and proportion([share == 1 for share in same]),
                same_start=same and mean(same),
                on_own=own,
                by_turn=by_turn(by_row, [answer_number(row) for row in rows.rows]),
                by_position=by_position(by_row),
            ),
        )

    @property
    def _decoding(self) -> Decoding:
        size = self.recipe.evaluation.batch_size
        return Decoding(self.max_new_tokens, batch_size=size, stop_repeats=True)


def _twice(rows: RenderedRows) -> RenderedRows:
    """The same rows, each of them twice, one after the other."""
    count = 2 * len(rows.rows)
    return replace(
        rows,
        rows=[row for row in rows.rows for _ in range(2)],
        teacher_prompts=Computed(count, lambda number: rows.teacher_prompts[number // 2]),
        student_prompts=Computed(count, lambda number: rows.student_prompts[number // 2]),
        gold=[None] * count,
    )
