"""How a method predicts gold answers, against the plain forward of each row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.small import (
    CONTEXT,
    ROWS,
    form_of,
    judged_of,
    nothing,
    plain_logits,
    target_rows,
    train_on,
)

from instil import chunked
from instil.cell import StudyMethod
from instil.context import Context
from instil.evaluation import Judged, score_gold
from instil.forward import output_embeddings
from instil.method import METHODS
from instil.model import LanguageModel, load
from instil.prepared import PreparedRows


def prepared(judged: Judged, context: Context = CONTEXT) -> PreparedRows:
    return PreparedRows.of("row", ROWS, form_of(judged.teacher), context, gold=True)


@pytest.fixture(params=[False, True], ids=["one model", "another teacher"])
def judged(
    request: pytest.FixtureRequest, llama: LanguageModel, model_folders: dict[str, Path]
) -> Judged:
    """A student that has learnt something."""
    one = judged_of(llama, CONTEXT)
    train_on(one, target_rows(one), steps=10)
    if not request.param:
        return one
    other = load(str(model_folders["opt"]), dtype="float32")
    return Judged(other, one.student, one.prompt_format, one.context)


@pytest.mark.parametrize("name", ["zero_shot", "in_context", "pattern_fine_tuning", "distillation"])
def test_gold_answers_are_scored_as_the_plain_forward_scores_them(
    judged: Judged, name: StudyMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with the logits of few positions in memory at a time."""
    method, rows = METHODS[name], prepared(judged)
    most = 3 * max(one.network.config.vocab_size for one in (judged.teacher, judged.student))
    monkeypatch.setattr(chunked, "MOST_LOGITS", most)
    made: list[int] = []
    for model in (judged.teacher, judged.student):
        output_embeddings(model.network).register_forward_hook(
            lambda module, args, output: made.append(output.numel())
        )
    compare = name == "distillation"
    told: list[int] = []
    got = score_gold(
        judged,
        rows,
        method,
        compare=compare,
        batch_size=2,
        advance=lambda done, tokens: told.append(done),
    )
    assert most // 2 < max(made) <= most
    entropy, kl, agree = [], [], []
    for number, gold in enumerate(rows.need_gold()):
        with judged.adapter(on=method.learns is not None):
            own = plain_logits(
                judged.model(method).network, rows.prompts(method)[number], gold
            ).log_softmax(-1)
        with judged.adapter(on=False):
            teacher = plain_logits(
                judged.teacher.network, rows.teacher_prompts[number], gold
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
    judged = judged_of(llama, Context())
    got = score_gold(
        judged,
        prepared(judged, Context()),
        METHODS["distillation"],
        compare=True,
        batch_size=2,
        advance=nothing,
    )
    assert got.fidelity is not None
    assert got.fidelity.kl_to_teacher == pytest.approx(0, abs=1e-6)
    assert got.fidelity.agreement == 1
