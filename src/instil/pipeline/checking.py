"""Judges a finished run again: its stored answers by other metrics and rules, or it on other rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instil.engines.chat import Chat
from instil.errors import ConfigError, DataFileError
from instil.evaluation.judge import Pair, judge_pairs
from instil.methods import METHODS
from instil.metrics import Metric
from instil.metrics.rules import Rule
from instil.pipeline import record
from instil.pipeline.folder import SCRATCH, Staging
from instil.pipeline.given import Given, Headed
from instil.pipeline.record import ADAPTER, DROPPED, PARTS
from instil.pipeline.steps import FIXED_BYTES, Judged
from instil.pipeline.verdicts import Verdicts, asked_of, means, verdicts
from instil.prompts.context import Context
from instil.recipe.recipe import Recipe
from instil.results.schema import (
    CONFIG,
    CONTEXT,
    ENVIRONMENT,
    EVALUATION,
    PREDICTIONS,
    RESULTS,
    SPENT,
    EvaluationRow,
    Prediction,
    Results,
)
from instil.results.scores import SetScore
from instil.system.files import digest, read_lines, write_lines
from instil.system.progress import Display
from instil.tasks.conversation import Message
from instil.tasks.files import ROWS, Files
from instil.tasks.free_text import FreeText
from instil.tasks.logs import Pile, rows_of


def check_stored(
    folder: Path, *, metrics: Sequence[Metric], rules: Sequence[Rule]
) -> tuple[Results, list[Prediction]]:
    """Judges the stored answers of a run by other metrics and rules. No model is loaded.

    Args:
        folder: Folder of the run.
        metrics: In place of the run's own; empty: its own stay.
        rules: In place of the run's own; empty: its own stay.

    Returns:
        The results with the new scores, and the answers with theirs.

    Raises:
        DataFileError: the run has no stored rows.
        ConfigError: a metric fails.
    """
    results = Results.read(folder / RESULTS)
    task = Recipe.parse(results.recipe).task
    path = folder / EVALUATION
    if not isinstance(task, FreeText) or not path.is_file():
        raise DataFileError(
            f"{folder} has no {EVALUATION}, so its answers cannot be judged again",
            mend="use a run with written answers, of this version of instil",
        )
    rows = {(row.set, row.row): row for row in read_lines(EvaluationRow, path)}
    lines = read_lines(Prediction, folder / PREDICTIONS)
    made: list[Prediction] = []
    methods = []
    for result in results.methods:
        scores = []
        for score in result.scores:
            of_set = [one for one in lines if (one.method, one.set) == (result.method, score.name)]
            asked = [rows[one.set, one.row] for one in of_set]
            told = verdicts(
                [one.text or "" for one in of_set],
                [row.output for row in asked],
                [asked_of(row) for row in asked],
                metrics=metrics,
                rules=rules,
                right=task.right,
                name=score.name,
            )
            scores.append(_scored(score, told, metrics=bool(metrics), rules=bool(rules)))
            made += _told(of_set, told, metrics=bool(metrics), rules=bool(rules))
        methods.append(result.model_copy(update={"scores": scores}))
    interval = Judged(methods, made, []).recovery_interval
    return (
        results.model_copy(update={"methods": methods, "recovery_interval": interval}),
        made,
    )


def judged_stored(
    folder: Path,
    results: Results,
    judge: Chat,
    *,
    most: int,
    template: str,
    display: Display,
) -> Results:
    """Lets a judge compare the stored answers of the student with its teacher's, on each set.

    Args:
        folder: Folder of the run.
        results: Its results, which are returned with the verdicts.
        judge: The judge.
        most: Most rows of a set; they are spread over the set.
        template: Template of the judge's prompt.
        display: Shows progress.

    Raises:
        DataFileError: the run has no answers of student and teacher.
        InstilError: the judge does not answer.
    """
    path = folder / EVALUATION
    rows = read_lines(EvaluationRow, path) if path.is_file() else []
    lines = {
        (one.method, one.set, one.row): one.text or ""
        for one in read_lines(Prediction, folder / PREDICTIONS)
    }
    if not rows or results.training is None or results.result("in_context") is None:
        raise DataFileError(
            f"{folder} has no answers of a student and its teacher to judge",
            mend="use a distilled student with the baseline in_context",
        )
    text = folder / CONTEXT
    context = text.read_text(encoding="utf-8") if text.is_file() else None
    student, scores = results.methods[0], []
    for score in student.scores:
        of_set = [row for row in rows if row.set == score.name]
        chosen = of_set[:: max(1, -(-len(of_set) // most))]
        pairs = [
            Pair(
                "\n".join(f"{one.role}: {one.content}" for one in row.messages) or row.input,
                lines["in_context", row.set, row.row],
                lines[student.method, row.set, row.row],
            )
            for row in chosen
        ]
        with display.bar(f"judging {score.name}", 2 * len(pairs)) as bar:
            found = judge_pairs(
                judge,
                pairs,
                template=template,
                context=context,
                advance=lambda count, bar=bar: bar.advance(count),  # type: ignore[misc]
            )
        assert score.written is not None
        written = score.written.model_copy(update={"judged": found})
        scores.append(score.model_copy(update={"written": written}))
    methods = [student.model_copy(update={"scores": scores}), *results.methods[1:]]
    return results.model_copy(update={"methods": methods})


def write_checked(
    folder: Path,
    staging: Staging,
    results: Results,
    predictions: Sequence[Prediction] | None,
) -> None:
    """Writes a run's stored answers, judged again, with a report.

    Args:
        folder: Folder of the run.
        staging: Folder to write.
        results: The new results.
        predictions: The answers with their new values; None: as they are in the run.

    Raises:
        OutputError: the folder cannot be written.
    """
    from instil.report import write_report

    with staging.open(digest(["check", str(folder)]), needed_bytes=FIXED_BYTES) as work:
        for name in (EVALUATION, CONFIG, ENVIRONMENT, CONTEXT, PARTS, DROPPED):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, work / name)
        known = predictions or read_lines(Prediction, folder / PREDICTIONS)
        write_lines(work / PREDICTIONS, known)
        results.write(work / RESULTS)
        write_report(work)
        staging.finish()


def _scored(score: SetScore, told: Verdicts, *, metrics: bool, rules: bool) -> SetScore:
    assert score.written is not None
    more: dict[str, Any] = {}
    if metrics:
        more["metrics"] = means(told.values)
    if rules:
        more["rules"] = means(told.rules)
    written = score.written.model_copy(update=more)
    accuracy = {"accuracy": told.leading} if metrics else {}
    return score.model_copy(update={"written": written, **accuracy})


def _told(
    lines: Sequence[Prediction], told: Verdicts, *, metrics: bool, rules: bool
) -> list[Prediction]:
    made = []
    for number, line in enumerate(lines):
        more: dict[str, Any] = {}
        if metrics:
            more = {"values": told.values[number], "correct": told.right[number]}
        if rules:
            more["rules"] = told.rules[number]
        made.append(line.model_copy(update=more))
    return made


def check_on(
    folder: Path,
    pile: Pile,
    output: Path,
    *,
    changes: dict[str, Any],
    overwrite: bool,
    display: Display,
) -> Results:
    """Judges the student of a run on other rows, beside zero-shot and in-context.

    After an interruption, the same call resumes with what the teacher wrote.

    Args:
        folder: Folder of the run.
        pile: The rows.
        output: Folder for results, answers and report.
        changes: Keys of the section `evaluation` to change.
        overwrite: Replace the results at `output`.
        display: Shows progress.

    Returns:
        The results. The costs of making the student are those of the run.

    Raises:
        DataFileError: the run has no weights, or no context of all rows.
        ConfigError: its answers are labels, or its task is not `files`.
        OutputExistsError: `output` exists and may not be replaced.
        InstilError: the rows or the machine do not allow it.
    """
    from instil.pipeline.student import load_adapter, source_of
    from instil.pipeline.text import TextSteps, Trained
    from instil.report import write_report

    results = Results.read(folder / RESULTS)
    recipe = Recipe.parse(results.recipe)
    if not isinstance(recipe.task, Files) or METHODS[recipe.method].learns is None:
        raise ConfigError(
            f"{folder} cannot be judged on other rows",
            got=f"task {recipe.task.name}, method {recipe.method}",
            allowed="a trained student of the task files",
        )
    if not (folder / PARTS).is_file():
        raise DataFileError(
            f"{folder} has no {PARTS}: its context is not known",
            mend="use a run of this version of instil",
        )
    context = Context.restored(json.loads((folder / PARTS).read_text(encoding="utf-8")))
    settings = recipe.model_dump(mode="json")
    settings["model"] = source_of(results)
    if results.teacher_source:
        settings["teacher"]["model"] = results.teacher_source
    settings["task"] |= {"allow_overlap": True, "inputs": None, "eval": None}
    settings["teacher"] |= {
        "max_new_tokens": results.prompt.max_new_tokens,
        "store": None,
        "engine": None,
        "targets": "computed",  # the rows may have come from elsewhere
    }
    settings["evaluation"] |= {"at_steps": None, "engine": None, **changes}
    settings["attn_implementation"] = None  # that of the machine that trained it
    if pile.items and not all(_known(item) for item in pile.items):
        settings["teacher"]["completions"] = "teacher"
    recipe = Recipe.parse(settings)
    task = recipe.task
    assert isinstance(task, Files)
    headed = Headed.of({ROWS: pile}, task, context)
    rows = rows_of(headed.items[ROWS], task.reading(gold=False))
    given = Given(context, rows, {ROWS: rows}, None, [*pile.dropped], pile.drops)
    staging = Staging(output, overwrite=overwrite, reads=[folder / ADAPTER])
    steps = TextSteps.prepare(recipe, store=staging.store, display=display, given=given)
    load_adapter(steps.models.student.network, folder)
    assert results.training is not None
    trained = Trained(steps.models, results.training, folder / ADAPTER)
    with staging.open(steps.identity, needed_bytes=FIXED_BYTES) as work:
        judged = steps.judge(None, trained)
        made = steps.results(judged, trained)
        spent = {name: cost for name, cost in results.phases.items() if name in SPENT}
        made = made.model_copy(update={"phases": made.phases | spent})
        shutil.rmtree(work / SCRATCH, ignore_errors=True)
        record.write(
            work,
            made,
            judged.predictions,
            example=steps.example(),
            context=context,
            context_text=steps.context_text,
            rows=judged.rows,
            dropped=steps.left_out,
        )
        write_report(work)
        staging.finish()
    return made


def _known(item: Any) -> bool:
    """Whether the answer of a row or conversation is known."""
    output = getattr(item, "output", None)
    messages: Sequence[Message] = getattr(item, "messages", ())
    return output is not None or (len(messages) > 0 and messages[-1].role == "assistant")
