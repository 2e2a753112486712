"""Drift: how much a student has changed on text that is unrelated to the task."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

import torch

from instil.evaluation.fidelity import beside, summed_kl
from instil.models.load import LanguageModel
from instil.models.reader import read_rows
from instil.models.roles import Models
from instil.results.schema import Drift
from instil.system.progress import Advance

DRIFT_WINDOW = 256  # maximum tokens per paragraph of unrelated text


@torch.inference_mode()
def drift(models: Models, *, advance: Advance) -> Drift:
    """Returns KL(base || student) on unrelated text, in nats per token.

    Args:
        models: Teacher and student.
        advance: Is called with the progress.
    """
    total, tokens = 0.0, 0
    for piece in _unrelated_text(models.student):
        start, rest = piece[:1], piece[1:]
        with models.adapter(on=False):
            base = read_rows(models.student, [start], [rest])
        for p_CV, (q_CV,), _ in beside(models, base, [(start, rest)], [True]):
            total += summed_kl(p_CV, q_CV)
        tokens += len(rest)
        advance(1, 2 * len(rest))
    return Drift(kl_to_base=total / tokens, tokens=tokens)


def drift_pieces(model: LanguageModel) -> int:
    """Returns the number of paragraphs that `drift` reads."""
    return sum(1 for _ in _unrelated_text(model))


def _unrelated_text(model: LanguageModel) -> Iterator[list[int]]:
    window = min(DRIFT_WINDOW, model.window or DRIFT_WINDOW)
    text = (files("instil.evaluation") / "unrelated.txt").read_text(encoding="utf-8")
    for paragraph in text.split("\n\n"):
        ids = model.tokenizer(paragraph.strip())["input_ids"][:window]
        if len(ids) > 1:
            yield ids
