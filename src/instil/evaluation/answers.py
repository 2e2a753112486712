"""Free-text answers, and the time per query."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median

from instil.methods import Method
from instil.models.generate import Decoding, Generated, generate
from instil.models.roles import Models
from instil.prompts.format import PromptFormat
from instil.results.scores import Ends
from instil.results.statistics import proportion
from instil.system import processes
from instil.system.progress import Advance
from instil.system.sequences import Computed

LATENCY_ROWS = 3  # queries that are answered one at a time, to measure the time per query
TIMED_TOKENS = 8  # tokens after the first one that are timed


@dataclass(frozen=True)
class Answered:
    """An answer of a method.

    Attributes:
        text: The answer as it is judged.
        ids: Its tokens, with the one that ends it.
        finished: Whether it has an end.
        repeats: Whether it has no end because it repeats itself.
    """

    text: str
    ids: list[int]
    finished: bool
    repeats: bool

    @classmethod
    def of(cls, made: Generated, form: PromptFormat) -> Answered:
        """A completion as an answer."""
        return cls(form.decode(made.ids), made.ids, made.finished, made.repeats)


def answer(
    models: Models,
    form: PromptFormat,
    prompts: Sequence[list[int]],
    method: Method,
    decoding: Decoding,
    *,
    advance: Advance,
) -> list[Answered]:
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
    return processes.put_together(Answered.of(made, form) for made in generated)


def seconds_per_query(prompts: Sequence[list[int]], ask: Callable[[list[int]], object]) -> float:
    """Returns the mean seconds to answer a single query, on a sample of prompts.

    The full prompt is read each time, as for a user without a prefix cache.

    Args:
        prompts: Prompts of an evaluation set, in token ids.
        ask: Answers one prompt.
    """
    sample = _sample(prompts)
    seconds = []
    # The longest prompt is a warm-up.
    for prompt in [max(sample, key=len), *sample]:
        start = time.perf_counter()
        ask(prompt)
        seconds.append(time.perf_counter() - start)
    return sum(seconds[1:]) / len(sample)


def seconds_per_answer(
    prompts: Sequence[list[int]],
    write: Callable[[list[int], int], Iterable[object]],
    *,
    tokens: float,
) -> float:
    """Returns the seconds to read a prompt and to write an answer of the mean length.

    Only the first tokens are written, and timed: all others take as long as these. The full prompt
    is read each time, as for a user without a prefix cache. Both times are medians, because the
    first query takes longer.

    Args:
        prompts: Prompts of an evaluation set, in token ids.
        write: Writes a number of tokens after a prompt, and yields after each.
        tokens: Mean length of an answer.
    """
    sample = _sample(prompts)
    reading, writing = list[float](), list[float]()
    for prompt in (sample * LATENCY_ROWS)[:LATENCY_ROWS]:
        steps = write(prompt, 1 + TIMED_TOKENS)
        start = time.perf_counter()
        for number, _ in enumerate(steps):
            now = time.perf_counter()
            (writing if number else reading).append(now - start)
            start = now
    return median(reading) + median(writing) * max(0.0, tokens - 1)


def _sample(prompts: Sequence[list[int]]) -> list[list[int]]:
    return [*prompts[:: max(1, len(prompts) // LATENCY_ROWS)][:LATENCY_ROWS]]


def ends(written: Sequence[Answered]) -> Ends:
    """How long answers are, and how they end."""
    return Ends(
        tokens_mean=mean(len(one.ids) for one in written),
        cut=proportion([not one.finished for one in written]),
        repeats=proportion([one.repeats for one in written]),
    )


def same_start(teacher: Sequence[int], other: Sequence[int]) -> float:
    """The share of the teacher's tokens before the first difference; 1 for the same answer."""
    if list(teacher) == list(other):
        return 1.0
    same = 0
    for one, two in zip(teacher, other, strict=False):
        if one != two:
            break
        same += 1
    return min(same, len(teacher) - 1) / len(teacher)
