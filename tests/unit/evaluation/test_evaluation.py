"""How a method predicts gold answers, against the plain forward of each row."""

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
)

from instil.evaluation.fidelity import score_gold
from instil.methods import METHODS, RunMethodName
from instil.models import chunked
from instil.models.forward import output_embeddings
from instil.models.load import LanguageModel, load
from instil.models.roles import Models
from instil.prompts.context import Context
from instil.prompts.rendered import RenderedRows


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


@pytest.mark.parametrize("name", ["zero_shot", "in_context", "pattern_fine_tuning", "distillation"])
def test_gold_answers_are_scored_as_the_plain_forward_scores_them(
    models: Models, name: RunMethodName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with the logits of few positions in memory at a time."""
    method, rows = METHODS[name], prepared(models)
    most = 3 * max(one.network.config.vocab_size for one in (models.teacher, models.student))
    monkeypatch.setattr(chunked, "MOST_LOGITS", most)
    made: list[int] = []
    for model in (models.teacher, models.student):
        output_embeddings(model.network).register_forward_hook(
            lambda module, args, output: made.append(output.numel())
        )
    compare = name == "distillation"
    told: list[int] = []
    got = score_gold(
        models,
        rows,
        method,
        compare=compare,
        batch_size=2,
        advance=lambda done, tokens: told.append(done),
    )
    assert most // 2 < max(made) <= most
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
        entropy.append(-own.gather(-1, torch.tensor(gold)[:, None])[:, 0])
        kl.append((teacher.exp() * (teacher - own)).sum(-1))
        agree.append((teacher.argmax(-1) == own.argmax(-1)).float())
    assert sum(told) == len(ROWS)
    assert got.cross_entropy == pytest.approx(torch.cat(entropy).mean().item(), rel=1e-4)
    assert (got.fidelity is not None) == compare
    if got.fidelity is not None:
        assert got.fidelity.kl_to_teacher == pytest.approx(torch.cat(kl).mean().item(), rel=1e-3)
        assert got.fidelity.agreement == pytest.approx(torch.cat(agree).mean().item())
        assert got.fidelity.kl_to_teacher > 1e-3


def test_without_a_context_a_fresh_student_is_as_close_as_can_be(llama: LanguageModel) -> None:
    models = models_of(llama)
    got = score_gold(
        models,
        prepared(models, Context()),
        METHODS["distillation"],
        compare=True,
        batch_size=2,
        advance=nothing,
    )
    assert got.fidelity is not None
    assert got.fidelity.kl_to_teacher == pytest.approx(0, abs=1e-6)
    assert got.fidelity.agreement == 1
