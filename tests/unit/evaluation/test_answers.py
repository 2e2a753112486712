"""Answers in free text, and what a query costs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.small import (
    CONTEXT,
    ROWS,
    form_of,
    models_of,
    nothing,
    plain_logits,
    target_rows,
    train_on,
)

from instil.evaluation.answers import (
    LATENCY_ROWS,
    TIMED_TOKENS,
    answer,
    seconds_per_answer,
    seconds_per_query,
)
from instil.methods import METHODS, MethodName
from instil.models.generate import Decoding
from instil.models.load import LanguageModel
from instil.models.roles import Models
from instil.prompts.rendered import RenderedRows

LIMIT = 5


def greedy(models: Models, method: MethodName, prompt: list[int]) -> list[int]:
    """The textbook way: one token at a time, each from a forward pass of its own."""
    form = form_of(models.teacher)
    ids: list[int] = []
    with models.adapter(on=METHODS[method].learns is not None):
        while len(ids) < LIMIT and not form.ending.stops(ids):
            logits = plain_logits(models.model(METHODS[method]).network, [*prompt, *ids], [0])
            ids.append(int(logits[0].argmax()))
            if ids[-1] in form.end_ids:
                break
    return ids


@pytest.fixture
def models(llama: LanguageModel) -> Models:
    """A student that has learnt something."""
    made = models_of(llama)
    train_on(made, target_rows(made), steps=10)
    return made


def test_a_method_answers_with_its_own_prompts_and_weights(models: Models) -> None:
    form = form_of(models.teacher)
    rows = RenderedRows.of("row", ROWS, form, CONTEXT, gold=True)
    said: dict[MethodName, list[str]] = {}
    for name in ("zero_shot", "in_context", "distillation"):
        method, told = METHODS[name], list[tuple[int, int]]()
        written = answer(
            models,
            form,
            rows.prompts(method),
            method,
            Decoding(max_new_tokens=LIMIT, batch_size=2),
            advance=lambda count, tokens, told=told: told.append((count, tokens)),  # type: ignore[misc]
        )
        said[name] = [one.text for one in written]
        expected = [greedy(models, name, prompt) for prompt in rows.prompts(method)]
        assert said[name] == [form.decode(ids) for ids in expected]
        assert [one.ids for one in written] == expected
        assert sum(count for count, _ in told) == len(ROWS)
        assert sum(tokens for _, tokens in told) > sum(map(len, expected))
    assert said["zero_shot"] != said["distillation"]
    assert said["zero_shot"] != said["in_context"]


def test_no_prompts_have_no_answers(models: Models) -> None:
    form, decoding = form_of(models.teacher), Decoding(max_new_tokens=LIMIT)
    assert answer(models, form, [], METHODS["zero_shot"], decoding, advance=nothing) == []


@pytest.mark.parametrize(
    ("rows", "sample"),
    [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (5, [0, 1, 2]), (9, [0, 3, 6]), (500, [0, 166, 332])],
)
def test_a_sample_is_asked_after_one_query_that_warms_up(rows: int, sample: list[int]) -> None:
    asked: list[int] = []
    seconds_per_query([[n] for n in range(rows)], lambda prompt: asked.append(prompt[0]))
    assert asked == [sample[0], *sample]
    assert len(sample) <= LATENCY_ROWS


def test_what_warms_up_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    spent = iter([100.0, 1.0, 2.0, 6.0])

    def ask(prompt: list[int]) -> None:
        now[0] += next(spent)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert seconds_per_query([[n] for n in range(9)], ask) == pytest.approx(3.0)


@pytest.mark.parametrize("tokens", [1.0, 3.5, 400.0])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_an_answer_takes_as_long_as_reading_and_its_tokens(
    monkeypatch: pytest.MonkeyPatch, rows: int, tokens: float
) -> None:
    now, asked = [0.0], list[tuple[int, int]]()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def write(prompt: list[int], count: int) -> Iterator[int]:
        asked.append((prompt[0], count))
        now[0] += 90.0 if len(asked) == 1 else 2.0  # the first query takes longer
        yield 0
        for number in range(1, count):
            now[0] += 0.5
            yield number

    prompts = [[n] for n in range(rows)]
    seconds = seconds_per_answer(prompts, write, tokens=tokens)
    assert seconds == pytest.approx(2.0 + 0.5 * (tokens - 1))
    assert [count for _, count in asked] == [1 + TIMED_TOKENS] * LATENCY_ROWS
    assert len({prompt for prompt, _ in asked}) == min(rows, LATENCY_ROWS)
