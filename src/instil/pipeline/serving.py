"""The student as it will be served: on an engine, or with its adapter merged into the weights.

An adapter can be right in this process and wrong where it runs: another dtype, other kernels, a module
that the server leaves out, rounding of merged weights. So the run's rows are answered there, too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from instil.engines.engine import Wanted
from instil.engines.started import ENGINES
from instil.errors import ConfigError, DataFileError
from instil.metrics import Metric
from instil.metrics.rules import Rule
from instil.models.generate import Decoding, Ending, Generated, generate
from instil.models.load import LanguageModel, load
from instil.models.loading import Loading, Quantization, check_library
from instil.pipeline.record import ADAPTER
from instil.pipeline.student import Query, Student
from instil.pipeline.verdicts import Verdicts, asked_of, means, verdicts
from instil.recipe.sections import Engine
from instil.results.schema import EVALUATION, EvaluationRow, Prediction
from instil.results.scores import ServedScore
from instil.results.statistics import mcnemar, proportion
from instil.system.files import read_lines
from instil.system.progress import Display
from instil.tasks.free_text import FreeText

MERGED = "merged"
BITS: dict[str, Literal[4, 8]] = {"merged+4bit": 4, "merged+8bit": 8}
"""Merged and then quantised: place -> bits of a weight."""
PLACES = (MERGED, *BITS, *ENGINES)
"""Where a student can be served."""


class Writes(Protocol):
    """Completes prompts greedily."""

    def __call__(
        self, prompts: Sequence[list[int]], ending: Ending, decoding: Decoding
    ) -> list[Generated]:
        """See `instil.models.generate.generate`."""


def served(
    folder: Path,
    where: str,
    settings: Engine,
    *,
    metrics: Sequence[Metric],
    rules: Sequence[Rule],
    before: Sequence[Prediction],
    display: Display,
) -> list[ServedScore]:
    """Lets a student answer the rows of its run where it will be served.

    Args:
        folder: Folder of the run.
        where: One of `PLACES`.
        settings: Settings of the engine.
        metrics: How answers are compared with outputs.
        rules: What answers must obey.
        before: The student's answers in its run, judged by the same metrics.
        display: Shows progress.

    Returns:
        A score for each set.

    Raises:
        ConfigError: there is no such place.
        DataFileError: the run has no adapter, no stored rows, or rows that cannot be asked again.
        EngineError: the engine does not start, or does not compute what this process computes.
    """
    if where not in PLACES:
        raise ConfigError(f"there is no engine {where!r}", allowed=", ".join(PLACES))
    if where in BITS:
        check_library()
    student = Student.load(folder, whole=True)
    task = student.recipe.task
    path = folder / EVALUATION
    if not isinstance(task, FreeText) or not path.is_file() or not (folder / ADAPTER).is_dir():
        raise DataFileError(
            f"{folder} cannot be asked again",
            got="no adapter, or no stored rows with free-text answers",
            mend="use a distilled student with written answers, of this version of instil",
        )
    by_set: dict[str, list[EvaluationRow]] = {}
    for row in read_lines(EvaluationRow, path):
        by_set.setdefault(row.set, []).append(row)
    logs = student.results.logs
    if logs is not None and logs.with_tools:
        raise DataFileError(
            f"{folder} cannot be asked again: its conversations have tools, which are not stored",
            mend="judge it in this process, with --eval FILE",
        )
    own = {(line.set, line.row): line for line in before if line.method == student.results.method}
    limit = student.results.prompt.max_new_tokens
    assert limit is not None
    decoding = Decoding(limit, batch_size=student.recipe.evaluation.batch_size, stop_repeats=True)
    scores = []
    asked = {
        name: [*student.prompts([_query(row, folder) for row in rows])]
        for name, rows in by_set.items()
    }
    first = next(iter(asked.values()))
    with _place(student, folder, where, settings, first, display) as (name, write):
        for set_name, rows in by_set.items():
            display.note(f"{name} answers {len(rows):,} rows of {set_name}")
            start = time.perf_counter()
            made = write(asked[set_name], student.form.ending, decoding)
            seconds = time.perf_counter() - start
            texts = [student.form.decode(one.ids) for one in made]
            told = verdicts(
                texts,
                [row.output for row in rows],
                [asked_of(row) for row in rows],
                metrics=metrics,
                rules=rules,
                right=task.right,
                name=set_name,
            )
            lines = [own[set_name, row.row] for row in rows]
            scores.append(_score(name, set_name, lines, texts, told, seconds))
    return scores


def _score(
    where: str,
    set_name: str,
    lines: Sequence[Prediction],
    texts: Sequence[str],
    told: Verdicts,
    seconds: float,
) -> ServedScore:
    """Compares the answers to a set with those of the run."""
    pairs = [
        (line.correct, now)
        for line, now in zip(lines, told.right, strict=True)
        if line.correct is not None and now is not None
    ]
    lost = sum(before and not now for before, now in pairs)
    won = sum(now and not before for before, now in pairs)
    return ServedScore(
        where=where,
        set=set_name,
        rows=len(lines),
        same_answer=proportion(
            [line.text == text for line, text in zip(lines, texts, strict=True)]
        ),
        accuracy=told.leading,
        accuracy_in_process=proportion([one for one, _ in pairs]) if pairs else None,
        p=mcnemar(lost, won) if pairs else None,
        rules=means(told.rules),
        seconds=seconds,
    )


def merge(student: Student) -> Any:
    """The network of a student with its adapter merged into the weights.

    Args:
        student: The student, loaded whole. It cannot be used any more: its weights are changed.
    """
    network: Any = student.model.network
    return network.merge_and_unload()


def _quantised(merged: LanguageModel, bits: Literal[4, 8]) -> LanguageModel:
    """A merged model, loaded again in few bits."""
    with tempfile.TemporaryDirectory() as name:
        merged.network.save_pretrained(name)
        merged.tokenizer.save_pretrained(name)
        how = Loading(quantization=Quantization(bits=bits))
        return load(name, dtype=merged.dtype, how=how)


@contextmanager
def _place(
    student: Student,
    folder: Path,
    where: str,
    settings: Engine,
    prompts: Sequence[list[int]],
    display: Display,
) -> Iterator[tuple[str, Writes]]:
    if where not in ENGINES:
        model = replace(student.model, network=merge(student))
        bits = BITS.get(where)
        if bits is not None:
            model = _quantised(model, bits)

        def write(
            prompts: Sequence[list[int]], ending: Ending, decoding: Decoding
        ) -> list[Generated]:
            with display.bar(f"the student answers, {where}", len(prompts)) as bar:
                return generate(
                    model, prompts, ending, decoding, advance=lambda rows, tokens: bar.advance(rows)
                )

        yield f"{where}, {model.dtype}", write
        return
    wanted = Wanted(settings, student.model, 1, folder / ADAPTER, prompts, display)
    with ENGINES[where](wanted) as engine:

        def ask(
            prompts: Sequence[list[int]], ending: Ending, decoding: Decoding
        ) -> list[Generated]:
            done: dict[int, Generated] = {}
            with display.bar(f"{engine.name} answers", len(prompts)) as bar:
                for places, made, _ in engine.completed(prompts, ending, decoding):
                    done.update(zip(places, made, strict=True))
                    bar.advance(len(places))
            return [done[place] for place in range(len(prompts))]

        yield f"{engine.name}, {student.model.dtype}", ask


def _query(row: EvaluationRow, folder: Path) -> Query:
    """What is asked: a text, or the messages of a conversation."""
    if any(message.role == "tool" for message in row.messages):
        raise DataFileError(
            f"{folder}, {row.set}, row {row.row}: results of tools cannot be asked again",
            mend="use a run whose rows have none",
        )
    if not row.messages:
        return row.input
    return [{"role": one.role, "content": one.content} for one in row.messages]
