"""Free-text answers, and the time per query."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from instil.methods import Method
from instil.models.generate import Decoding, generate
from instil.models.roles import Models
from instil.prompts.format import PromptFormat
from instil.system import processes
from instil.system.progress import Advance
from instil.system.sequences import Computed

LATENCY_ROWS = 3  # queries that are answered one at a time, to measure the time per query


def answer(
    models: Models,
    form: PromptFormat,
    prompts: Sequence[list[int]],
    method: Method,
    decoding: Decoding,
    *,
    advance: Advance,
) -> list[str]:
    """Returns a method's answers. Each process of a launch answers its share.

    Args:
        models: Teacher and student.
        form: Renders the prompts.
        prompts: Prompts of the method, in token ids.
        method: Method that answers.
        decoding: Limits and batch size.
        advance: Is called with the progress of this process.
    """
    share = processes.share(len(prompts))
    with models.adapter(on=method.learns is not None):
        generated = generate(
            models.model(method),
            Computed.picked(prompts, share),
            form.ending,
            decoding,
            advance=advance,
        )
    return processes.put_together(form.decode(answer.ids) for answer in generated)


def seconds_per_query(prompts: Sequence[list[int]], ask: Callable[[list[int]], object]) -> float:
    """Returns the mean seconds to answer a single query, on a sample of prompts.

    The full prompt is read each time, as for a user without a prefix cache.

    Args:
        prompts: Prompts of an evaluation set, in token ids.
        ask: Answers one prompt.
    """
    sample = prompts[:: max(1, len(prompts) // LATENCY_ROWS)][:LATENCY_ROWS]
    seconds = []
    # The longest prompt is a warm-up; it also proves the way to decode for the shorter ones.
    for prompt in [max(sample, key=len), *sample]:
        start = time.perf_counter()
        ask(prompt)
        seconds.append(time.perf_counter() - start)
    return sum(seconds[1:]) / len(sample)
