"""Answers, and what a query costs."""

from __future__ import annotations

import time
from dataclasses import replace

from instil.methods import RUN_METHODS, RunMethodName
from instil.models.generate import Decoding, Ending, generate
from instil.models.load import LanguageModel
from instil.models.roles import Models
from instil.prompts.format import PromptFormat
from instil.prompts.rendered import RenderedRows
from instil.results.schema import MethodResult, Prediction
from instil.results.statistics import proportion
from instil.system.progress import Advance
from instil.tasks.metrics import exact_match

# Rows answered one at a time to learn what a query costs when it comes alone.
LATENCY_ROWS = 3


def answer(
    models: Models,
    form: PromptFormat,
    name: RunMethodName,
    rows: RenderedRows,
    decoding: Decoding,
    *,
    advance: Advance,
) -> tuple[MethodResult, list[Prediction]]:
    """Lets a method answer all rows, greedily, and some of them alone to see what one costs.

    Args:
        models: Teacher and student.
        form: Renders the prompts.
        name: Of the method.
        rows: The evaluation rows; rows without an output are answered but not counted.
        decoding: Limits.
        advance: Told of progress.
    """
    method = RUN_METHODS[name]
    prompts = rows.prompts(method)
    model = models.model(method)
    with models.adapter(on=method.learns is not None):
        outputs = generate(model, prompts, form.ending, decoding, advance=advance)
        seconds = _seconds_per_query(model, prompts, form.ending, decoding)
    predictions = []
    for number, (row, output) in enumerate(zip(rows.rows, outputs, strict=True)):
        text = form.decode(output.ids)
        correct = None if row.output is None else exact_match(text, row.output)
        predictions.append(
            Prediction(
                row=number,
                method=name,
                input=row.input,
                expected=row.output,
                output=text,
                correct=correct,
            )
        )
    counted = [p.correct for p in predictions if p.correct is not None]
    result = MethodResult(
        accuracy=proportion(counted) if counted else None,
        prompt_tokens_mean=sum(map(len, prompts)) / len(prompts),
        seconds_per_query=seconds,
    )
    return result, predictions


def _seconds_per_query(
    model: LanguageModel, prompts: list[list[int]], ending: Ending, decoding: Decoding
) -> float:
    """Mean time of one query that comes alone, its whole prompt read, as a user without a prefix cache pays it."""
    alone = replace(decoding, batch_size=1)
    sample = prompts[:: max(1, len(prompts) // LATENCY_ROWS)][:LATENCY_ROWS]
    seconds = []
    for prompt in [sample[0], *sample]:  # the first one warms up
        start = time.perf_counter()
        generate(model, [prompt], ending, alone, advance=lambda rows, tokens: None)
        seconds.append(time.perf_counter() - start)
    return sum(seconds[1:]) / len(sample)
