"""How methods predict completions, against the plain forward of each row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.small import (
    CONTEXT,
    ROWS,
    form_of,
    models_of,
    nothing,
    plain_logits,
    target_rows,
    train_on,
    trust,
)

from instil.evaluation.fidelity import Likelihood, likelihoods
from instil.methods import METHODS, Method, MethodName
from instil.models import chunked
from instil.models.forward import output_embeddings
from instil.models.load import LanguageModel, load
from instil.models.roles import Models
from instil.prompts.context import Context
from instil.prompts.rendered import RenderedRows

NAMES: list[MethodName] = [
    "in_context",
    "zero_shot",
    "pattern_fine_tuning_in_context",
    "distillation",
    "pattern_fine_tuning",
]


def prepared(models: Models, context: Context = CONTEXT) -> RenderedRows:
    return RenderedRows.of("row", ROWS, form_of(models.teacher), context, gold=True)


@pytest.fixture(params=[False, True], ids=["one model", "another teacher"])
def models(
    request: pytest.FixtureRequest, llama: LanguageModel, model_folders: dict[str, Path]
) -> Models:
    """A student that has learnt something."""
    one = models_of(llama)
    train_on(one, target_rows(one), steps=10)
    if not request.param:
        return one
    other = load(str(model_folders["opt"]), dtype="float32")
    return Models(other, one.student)


def expected(models: Models, rows: RenderedRows, method: Method) -> tuple[float, float, float]:
    """Cross-entropy, KL to the teacher and agreement with it, from one row at a time."""
    entropy, kl, agree = [], [], []
    for number, gold in enumerate(rows.need_gold()):
        with models.adapter(on=method.learns is not None):
            own = plain_logits(
                models.model(method).network, rows.prompts(method)[number], gold
            ).log_softmax(-1)
        with models.adapter(on=False):
            teacher = plain_logits(
                models.teacher.network, rows.teacher_prompts[number], gold
            ).log_softmax(-1)
        entropy.append(-own.gather(-1, torch.tensor(gold, device=own.device)[:, None])[:, 0])
        kl.append((teacher.exp() * (teacher - own)).sum(-1))
        agree.append((teacher.argmax(-1) == own.argmax(-1)).float())
    entropy_mean, kl_mean, agreement = (
        torch.cat(one).mean().item() for one in (entropy, kl, agree)
    )
    return entropy_mean, kl_mean, agreement


@pytest.mark.parametrize("compare", [False, True])
def test_completions_are_scored_as_the_plain_forward_scores_them(
    models: Models, compare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For several methods at once, and with the logits of few positions in memory at a time."""
    rows, methods = prepared(models), [METHODS[name] for name in NAMES]
    most = 3 * max(one.network.config.vocab_size for one in (models.teacher, models.student))
    monkeypatch.setattr(chunked, "MOST_LOGITS", most)
    made: list[int] = []
    for model in (models.teacher, models.student):
        trust(model.network)
        output_embeddings(model.network).register_forward_hook(
            lambda module, args, output: made.append(output.numel())
        )
    got = likelihoods(
        models,
        rows,
        rows.need_gold(),
        methods,
        compare=compare,
        batch_size=2,
        advance=nothing,
    )
    assert most // 2 < max(made) <= most
    assert len(got) == len(methods)
    for method, one in zip(methods, got, strict=True):
        entropy, kl, agreement = expected(models, rows, method)
        assert one.cross_entropy == pytest.approx(entropy, rel=1e-4)
        assert (one.fidelity is not None) == (compare and not method.context)
        if one.fidelity is not None:
            assert one.fidelity.kl_to_teacher == pytest.approx(kl, rel=1e-3)
            assert kl > 1e-3
            assert one.fidelity.agreement == pytest.approx(agreement)


def read(models: Models, names: list[MethodName], *, compare: bool) -> tuple[int, int, int]:
    """Rows and tokens that are reported, and how often the output layer has run."""
    rows, told, calls = prepared(models), list[tuple[int, int]](), list[int]()
    hook = output_embeddings(models.student.network).register_forward_pre_hook(
        lambda module, args: calls.append(1)
    )
    likelihoods(
        models,
        rows,
        rows.need_gold(),
        [METHODS[name] for name in names],
        compare=compare,
        batch_size=2,
        advance=lambda count, tokens: told.append((count, tokens)),
    )
    hook.remove()
    return sum(count for count, _ in told), sum(tokens for _, tokens in told), len(calls)


def test_the_teachers_logits_are_made_once_for_all_that_are_compared(llama: LanguageModel) -> None:
    models = models_of(llama)
    trust(models.student.network)
    read(models, ["zero_shot"], compare=True)  # the output layer is asked once what it does
    in_context = read(models, ["in_context"], compare=True)
    assert in_context == read(models, ["in_context"], compare=False)
    zero_shot = read(models, ["zero_shot"], compare=True)
    distilled = read(models, ["distillation"], compare=True)
    every = read(models, ["zero_shot", "in_context", "distillation"], compare=True)
    assert zero_shot[0] == distilled[0] == every[0] == len(ROWS)
    for once, one, other, both in zip(
        in_context[1:], zero_shot[1:], distilled[1:], every[1:], strict=True
    ):
        assert both == one + other - once


@pytest.mark.parametrize("name", ["zero_shot", "distillation"])
def test_without_a_context_a_fresh_student_is_as_close_as_can_be(
    llama: LanguageModel, name: MethodName
) -> None:
    models = models_of(llama)
    rows = prepared(models, Context())
    (got,) = likelihoods(
        models,
        rows,
        rows.need_gold(),
        [METHODS[name]],
        compare=True,
        batch_size=2,
        advance=nothing,
    )
    assert got.fidelity is not None
    assert 0 <= got.fidelity.kl_to_teacher < 1e-6
    assert got.fidelity.agreement == 1


def test_completions_need_not_be_gold(llama: LanguageModel) -> None:
    models = models_of(llama)
    rows = prepared(models)

    def ask(completions: list[list[int]]) -> list[Likelihood]:
        return likelihoods(
            models,
            rows,
            completions,
            [METHODS["zero_shot"]],
            compare=True,
            batch_size=2,
            advance=nothing,
        )

    gold = rows.need_gold()
    assert ask([ids[::-1] for ids in gold]) != ask(gold)
