"""The view-model of the report and its rendering."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from instil.methods import PHASES, RunMethodName
from instil.report import figures
from instil.report.drawing import Figure
from instil.report.figures import TITLES
from instil.report.numerals import (
    MISSING,
    NBSP,
    count,
    duration,
    fixed,
    interval,
    number,
    percent,
    points,
    whole_percent,
)
from instil.report.table import Cell, Row
from instil.report.templates import as_json, templates
from instil.report.verdict import KEPT, NOTICEABLE_DRIFT, caveats, judge, share_closed
from instil.results.schema import Prediction, Results

PAGE_SIZE = 50
"""Evaluation rows shown at once."""


@dataclass(frozen=True)
class Reading:
    """A number without training and with it, what it means and what a good value looks like."""

    name: str
    before: str
    after: str
    unit: str
    remark: str
    meaning: str


@dataclass(frozen=True)
class Answer:
    """What one method answered to one row."""

    output: str
    correct: bool | None


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluation row, answered by every method, and the filters that it passes."""

    index: int
    input: str
    expected: str | None
    answers: tuple[Answer | None, ...]
    filters: tuple[str, ...]


def render(
    results: Results,
    predictions: list[Prediction],
    *,
    environment: dict[str, Any] | None = None,
    context_text: str = "",
) -> str:
    """Renders the report as one HTML file that asks nothing of the network.

    The same arguments give the same bytes.

    Args:
        results: What `results.json` holds.
        predictions: What `predictions.jsonl` holds, in any order; may be empty.
        environment: Versions, hardware, the command, nested as deep as you like.
        context_text: The context as the teacher read it.

    Returns:
        The HTML document. Whatever comes from data stands in it as text.
    """
    answered = {prediction.method for prediction in predictions}
    methods = [method for method in TITLES if method in results.methods or method in answered]
    rows = evaluation_rows(predictions, methods)
    graded = any(a and a.correct is not None for row in rows for a in row.answers)
    quality = figures.accuracy(results) or figures.fidelity(results)
    template = templates().get_template("page.html.j2")
    return template.render(
        results=results,
        verdict=judge(results),
        caveats=caveats(results),
        facts=_facts(results),
        method_rows=_method_rows(results),
        paired=_paired(rows, methods),
        method_figures=_drawn(quality, figures.query_cost(results)),
        cost_figures=_drawn(figures.loss(results), figures.phase_cost(results)),
        readings=_readings(results),
        phase_rows=_phase_rows(results),
        phase_total=_phase_total(results),
        cost_sentences=_cost_sentences(results),
        training=_training(results),
        context_text=context_text,
        methods=[(method, TITLES[method]) for method in methods],
        rows=rows,
        filters=_filters(rows, graded),
        graded=graded,
        page_size=PAGE_SIZE,
        environment=list(_flat(environment or {})),
    )


def _drawn(*candidates: Figure | None) -> list[Figure]:
    return [figure for figure in candidates if figure is not None]


def evaluation_rows(
    predictions: Iterable[Prediction], methods: list[RunMethodName]
) -> list[EvaluationRow]:
    """Gathers predictions by row, in the order of their indices."""
    by_row: dict[int, dict[RunMethodName, Prediction]] = {}
    for prediction in predictions:
        by_row.setdefault(prediction.row, {})[prediction.method] = prediction
    gathered = []
    for index, found in sorted(by_row.items()):
        first = next(iter(found.values()))
        answers = {m: Answer(p.output, p.correct) for m, p in found.items()}
        gathered.append(
            EvaluationRow(
                index=index,
                input=first.input,
                expected=first.expected,
                answers=tuple(answers.get(method) for method in methods),
                filters=tuple(_passes(answers)),
            )
        )
    return gathered


def _passes(answers: Mapping[RunMethodName, Answer]) -> Iterable[str]:
    marks = {answer.correct for answer in answers.values()}
    # With gold outputs, methods that are wrong in different words do not disagree on anything that
    # matters; without them, the words are all there is.
    outputs = {answer.output.strip() for answer in answers.values()}
    if len(marks) > 1 or (marks == {None} and len(outputs) > 1):
        yield "disagree"
    student, context = answers.get("distilled"), answers.get("in_context")
    if student and student.correct is False:
        yield "wrong"
        if context and context.correct:
            yield "lost"


def _filters(rows: list[EvaluationRow], graded: bool) -> list[tuple[str, str, int]]:
    names = {"disagree": "Methods disagree"}
    if graded:
        names |= {"wrong": "Distilled wrong", "lost": "Distilled wrong, in-context right"}
    passing = [(key, name, sum(key in row.filters for row in rows)) for key, name in names.items()]
    return [("", "All rows", len(rows)), *passing]


def _paired(rows: list[EvaluationRow], methods: list[RunMethodName]) -> str:
    """In-context and distilled on the same rows, which intervals of two marginals cannot show."""
    if not {"in_context", "distilled"} <= set(methods):
        return ""
    context, student = methods.index("in_context"), methods.index("distilled")
    pairs = [
        (one.correct, other.correct)
        for row in rows
        if (one := row.answers[context]) and (other := row.answers[student])
        if one.correct is not None and other.correct is not None
    ]
    if not pairs:
        return ""
    return (
        f"Row by row, on the same {count(len(pairs), 'row')}: both right on "
        f"{count(pairs.count((True, True)))}, only in-context on "
        f"{count(pairs.count((True, False)))}, only distilled on "
        f"{count(pairs.count((False, True)))}, neither on {count(pairs.count((False, False)))}."
    )


def _facts(results: Results) -> list[tuple[str, str]]:
    teacher = results.teacher_model or "the same weights, adapter off"
    facts = [("model", results.model), ("teacher", teacher)]
    names = {"description": "context", "tokens": "context tokens"}
    facts += [(names[key], value) for key, value in _flat(results.context) if key in names]
    facts += [
        ("prompts", results.format),
        ("dtype", results.dtype),
        ("seed", str(results.seed)),
        ("instil", results.instil_version),
    ]
    return facts


def _method_rows(results: Results) -> list[Row]:
    rows = []
    for method, title in TITLES.items():
        if method not in results.methods:
            continue
        scored = results.methods[method]
        accuracy = scored.accuracy
        tokens, seconds = scored.prompt_tokens_mean, scored.seconds_per_query
        rows.append(
            Row(
                name=title,
                method=method,
                cells=(
                    Cell(percent(accuracy.value), accuracy.value, interval(accuracy))
                    if accuracy
                    else Cell(MISSING, None),
                    Cell(count(accuracy.n), accuracy.n) if accuracy else Cell(MISSING, None),
                    Cell(fixed(tokens), tokens),
                    Cell(number(seconds), seconds),
                ),
            )
        )
    return rows


def _phase_rows(results: Results) -> list[Row]:
    rows = []
    for order, phase in enumerate(PHASES):
        if phase not in results.phases:
            continue
        cost = results.phases[phase]
        seconds = (cost.wall_seconds, cost.cpu_user_seconds, cost.cpu_system_seconds)
        memory = (cost.peak_rss_mb, cost.mean_rss_mb)
        rows.append(
            Row(
                name=phase,
                method=str(order),
                cells=(
                    *(Cell(fixed(value), value) for value in seconds),
                    *(Cell(fixed(value, 0), value) for value in memory),
                    *(Cell(count(value), value) for value in (cost.tokens, cost.steps)),
                ),
            )
        )
    return rows


def _phase_total(results: Results) -> list[str]:
    phases = results.phases.values()
    if not phases:
        return []
    wall = sum(cost.wall_seconds for cost in phases)
    # A phase's mean memory counts for as long as the phase lasted. Steps of different phases are
    # different things and have no sum.
    memory = sum(cost.mean_rss_mb * cost.wall_seconds for cost in phases) / wall if wall else 0
    return [
        fixed(wall),
        fixed(sum(cost.cpu_user_seconds for cost in phases)),
        fixed(sum(cost.cpu_system_seconds for cost in phases)),
        fixed(max(cost.peak_rss_mb for cost in phases), 0),
        fixed(memory, 0) if wall else MISSING,
        count(sum(cost.tokens for cost in phases)),
        MISSING,
    ]


def _readings(results: Results) -> list[Reading]:
    kl, agreement = results.fidelity.kl_to_teacher, results.fidelity.top1_agreement
    closed, risen = share_closed(results.fidelity), agreement.distilled - agreement.zero_shot
    if closed is None:
        remark = "The context hardly changes the predictions."
    elif closed > 0:
        remark = f"{whole_percent(closed)} of it removed by training."
    else:
        remark = "Training did not lower it."
    return [
        Reading(
            name="KL to the teacher",
            before=number(kl.zero_shot),
            after=number(kl.distilled),
            unit="nats a token",
            remark=remark,
            meaning="How far the student\u2019s next-token probabilities are from the "
            "teacher\u2019s, over the whole vocabulary; 0 is identical, and as a rule of thumb a "
            f"good student is under {whole_percent(1 - KEPT)} of the zero-shot value.",
        ),
        Reading(
            name="Top-1 agreement",
            before=percent(agreement.zero_shot),
            after=percent(agreement.distilled),
            unit="of tokens",
            remark=f"{points(abs(risen))} {'more' if risen >= 0 else 'less'} than zero-shot.",
            meaning="How often the student\u2019s most likely token is the teacher\u2019s; a good "
            f"student is above {whole_percent(KEPT)}, and well above zero-shot.",
        ),
        Reading(
            name="Drift",
            before="",
            after=number(results.drift.kl_to_base),
            unit="nats a token",
            remark=f"On {count(results.drift.n_tokens, 'token')} of unrelated text.",
            meaning="How far training moved the model\u2019s predictions where the task plays no "
            f"part; 0 is untouched, and a good value is below {NOTICEABLE_DRIFT}, which is about a "
            "tenth more perplexity on text that the base model would write.",
        ),
    ]


def _cost_sentences(results: Results) -> list[str]:
    context, student = results.methods.get("in_context"), results.methods.get("distilled")
    saved = results.cost.prompt_tokens_saved_per_query
    tokens = f"A query sends {fixed(saved)} prompt tokens fewer than in-context"
    if context and context.prompt_tokens_mean > 0 and saved > 0:
        tokens += f", {whole_percent(saved / context.prompt_tokens_mean)} of that prompt"
    said = [f"{tokens}."]
    if context and student:
        said.append(
            f"It takes {number(student.seconds_per_query)}{NBSP}s instead of "
            f"{number(context.seconds_per_query)}{NBSP}s."
        )
    queries = results.cost.break_even_queries
    if queries is None:
        return [*said, "A query saves no time on this machine, so there is no break-even."]
    phases = [p for name in ("generate", "teach", "train") if (p := results.phases.get(name))]
    spent = duration(sum(phase.wall_seconds for phase in phases))
    paid = f"break even after {count(queries, 'query', 'queries')}."
    return [*said, f"Generating, teaching and training took {spent} and {paid}"]


def _training(results: Results) -> str:
    training = results.training
    return (
        f"Trained on {count(training.rows, 'row')} ({count(training.tokens, 'completion token')}) "
        f"for {count(training.steps, 'step')}; "
        f"{count(training.trainable_parameters, 'trainable parameter')}, "
        f"{100 * training.trainable_share:.2g}{NBSP}% of the model."
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", as_json(value)
