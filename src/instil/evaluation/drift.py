"""Drift: how much a student has changed on text that has nothing to do with its task."""

from __future__ import annotations

from importlib.resources import files

import torch

from instil.evaluation.fidelity import beside, kl_per_token
from instil.models.load import LanguageModel
from instil.models.reader import read_rows
from instil.models.roles import Models
from instil.results.scores import Drift, KindDrift
from instil.system.progress import Advance

KINDS = ("prose", "code", "sums", "languages", "chat", "tasks")
"""The kinds of text, each a file of pieces that lines with `%%` separate."""
LONGEST = 256  # tokens of a piece; the rest of a longer one is left out
SEPARATOR = "\n%%\n"


@torch.inference_mode()
def drift(models: Models, *, most: int | None, advance: Advance) -> Drift:
    """Returns KL(base || student) on unrelated text, and how often both expect the same token.

    Args:
        models: Teacher and student.
        most: About how many tokens of each kind are read; None: all.
        advance: Is called with the progress.
    """
    kinds: dict[str, KindDrift] = {}
    for kind in KINDS:
        total, same, tokens = 0.0, 0, 0
        for start, rest in _pieces(models.student, kind, most):
            with models.adapter(on=False):
                base = read_rows(models.student, [start], [rest])
            with models.adapter(on=True):
                student = read_rows(models.student, [start], [rest])
            for p_CV, (q_CV,), _ in beside(models, base, [(True, student)], [rest]):
                total += float(kl_per_token(p_CV, q_CV).sum())
                same += int((p_CV.argmax(-1) == q_CV.argmax(-1)).sum())
            tokens += len(rest)
            advance(1, 2 * len(rest))
        kinds[kind] = KindDrift(kl_to_base=total / tokens, same_top=same / tokens, tokens=tokens)
    tokens = sum(kind.tokens for kind in kinds.values())
    return Drift(
        kl_to_base=sum(kind.kl_to_base * kind.tokens for kind in kinds.values()) / tokens,
        same_top=sum(kind.same_top * kind.tokens for kind in kinds.values()) / tokens,
        tokens=tokens,
        kinds=kinds,
    )


def drift_pieces(model: LanguageModel, *, most: int | None) -> int:
    """Returns the number of pieces that `drift` reads."""
    return sum(len(_pieces(model, kind, most)) for kind in KINDS)


def _pieces(model: LanguageModel, kind: str, most: int | None) -> list[tuple[list[int], list[int]]]:
    """The first token and the others of each piece of a kind."""
    window = min(LONGEST, model.window or LONGEST)
    text = (files("instil.evaluation") / "unrelated" / f"{kind}.txt").read_text(encoding="utf-8")
    found: list[tuple[list[int], list[int]]] = []
    tokens = 0
    for piece in text.strip().split(SEPARATOR):
        ids = model.tokenizer(piece)["input_ids"][:window]
        if len(ids) > 1 and (most is None or tokens < most):
            found.append((ids[:1], ids[1:]))
            tokens += len(ids)
    return found
