"""How far a student moved on text that has nothing to do with the task."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from tests.small import models_of, nothing, plain_logits, target_rows, train_on

from instil.evaluation.drift import KINDS, LONGEST, SEPARATOR, drift, drift_pieces
from instil.models.load import LanguageModel, load
from instil.models.roles import Models

ROOT = files("instil.evaluation") / "unrelated"
MOST = 300


def pieces(model: LanguageModel, window: int = LONGEST, most: int = MOST) -> list[list[int]]:
    """The first pieces of each kind, until there are as many tokens as were asked for."""
    found: list[list[int]] = []
    for kind in KINDS:
        tokens = 0
        for piece in (ROOT / f"{kind}.txt").read_text(encoding="utf-8").strip().split(SEPARATOR):
            if tokens < most:
                found.append(model.tokenizer(piece)["input_ids"][:window])
                tokens += len(found[-1])
    return found


def plain_kl(models: Models) -> float:
    """KL(base || student) per token, from one piece at a time."""
    kl = []
    for piece in pieces(models.student):
        with models.adapter(on=False):
            base = plain_logits(models.student.network, piece[:1], piece[1:]).log_softmax(-1)
        own = plain_logits(models.student.network, piece[:1], piece[1:]).log_softmax(-1)
        kl.append((base.exp() * (base - own)).sum(-1))
    return float(torch.cat(kl).mean())


@pytest.mark.parametrize("another", [False, True], ids=["one model", "another teacher"])
def test_drift_is_the_kl_to_the_student_s_own_base(
    llama: LanguageModel, model_folders: dict[str, Path], another: bool
) -> None:
    models, told = models_of(llama), list[tuple[int, int]]()
    before = drift(models, most=MOST, advance=nothing)
    assert before.kl_to_base == pytest.approx(0, abs=1e-6)
    train_on(models, target_rows(models), steps=10)
    if another:
        models = replace(models, teacher=load(str(model_folders["opt"]), dtype="float32"))
    got = drift(models, most=MOST, advance=lambda count, tokens: told.append((count, tokens)))
    expected = plain_kl(models)
    assert expected > 1e-3
    assert got.kl_to_base == pytest.approx(expected, rel=1e-3)
    read = pieces(models.student)
    assert got.tokens == before.tokens == sum(len(piece) - 1 for piece in read)
    assert (
        [count for count, _ in told]
        == [1] * drift_pieces(models.student, most=MOST)
        == [1] * len(read)
    )
    assert sum(tokens for _, tokens in told) == 2 * got.tokens


def test_a_piece_is_no_longer_than_the_model_s_window(llama: LanguageModel) -> None:
    student = models_of(llama).student
    for window, read in ((40, 40), (None, LONGEST), (512, LONGEST)):
        one = replace(student, window=window)
        got = drift(Models(one, one), most=MOST, advance=nothing)
        assert got.tokens == sum(len(piece) - 1 for piece in pieces(student, read))
