"""How close a student's predictions are to its teacher's, and to gold answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from instil.methods import Method
from instil.models.batch import Batch, collate
from instil.models.cache import SharedPrefix, alike
from instil.models.forward import Logits
from instil.models.load import LanguageModel
from instil.models.roles import Models
from instil.prompts.pair import AlignedPair
from instil.prompts.rendered import RenderedRows
from instil.results.cell import Closeness
from instil.results.schema import Fidelity, Pair
from instil.system.progress import Advance


def fidelity(
    models: Models, pairs: Sequence[AlignedPair], *, gold: bool, batch_size: int, advance: Advance
) -> Fidelity:
    """Compares predictions with the teacher's on held-out completions, token by token, over the whole vocabulary.

    Args:
        models: Teacher and student.
        pairs: Held-out pairs.
        gold: Whether the completions are gold ones.
        batch_size: Most rows in a forward pass.
        advance: Told of progress.
    """
    before, after = _compare(
        models, pairs, adapters=(False, True), batch_size=batch_size, advance=advance
    )
    return Fidelity(
        kl_to_teacher=Pair(zero_shot=before.kl, distilled=after.kl),
        top1_agreement=Pair(zero_shot=before.agreement, distilled=after.agreement),
        n_tokens=sum(len(pair.completion) for pair in pairs),
        completions="gold" if gold else "teacher",
    )


@dataclass(frozen=True)
class GoldScore:
    """How a method predicts gold answers, token by token.

    Attributes:
        cross_entropy: Nats a token.
        fidelity: To the teacher, over the whole vocabulary; None if not asked for.
    """

    cross_entropy: float
    fidelity: Closeness | None


def score_gold(
    models: Models,
    rows: RenderedRows,
    method: Method,
    *,
    compare: bool,
    batch_size: int,
    advance: Advance,
) -> GoldScore:
    """Reads gold answers as a method does, and as its teacher does.

    Args:
        models: Teacher and student.
        rows: With gold completions.
        method: Who reads.
        compare: Compare with the teacher, who reads the context; for methods that do not.
        batch_size: Most rows in a forward pass.
        advance: Told of progress.
    """
    completions, on = rows.need_gold(), method.learns is not None
    if not compare:
        model, prompts = models.model(method), rows.prompts(method)
        with models.adapter(on=on):
            entropy = _cross_entropy(model, prompts, completions, batch_size, advance)
        return GoldScore(entropy, None)
    pairs = [
        AlignedPair(number, *row)
        for number, row in enumerate(
            zip(rows.teacher_prompts, rows.student_prompts, completions, strict=True)
        )
    ]
    (own,) = _compare(models, pairs, adapters=(on,), batch_size=batch_size, advance=advance)
    closeness = Closeness(kl_to_teacher=max(0.0, own.kl), agreement=own.agreement)
    return GoldScore(own.cross_entropy, closeness)


@dataclass
class Compared:
    """A student beside its teacher; sums over tokens, then means: nats of KL and of cross-entropy, share that agrees."""

    kl: float = 0.0
    cross_entropy: float = 0.0
    agreement: float = 0.0

    def add(self, p_NV: Tensor, q_NV: Tensor, gold_N: Tensor) -> None:
        """Adds N tokens: the teacher's logits, the student's, and the ids."""
        vocabulary = min(p_NV.shape[-1], q_NV.shape[-1])
        p_NV, q_NV = p_NV[:, :vocabulary], q_NV[:, :vocabulary]
        self.kl += float(_kl(p_NV, q_NV).sum())
        self.cross_entropy += float(cross_entropy(q_NV, gold_N.to(q_NV.device), reduction="sum"))
        self.agreement += int((p_NV.argmax(-1) == q_NV.argmax(-1)).sum())

    def over(self, tokens: int) -> Compared:
        """The means over this number of tokens."""
        return Compared(self.kl / tokens, self.cross_entropy / tokens, self.agreement / tokens)


@torch.inference_mode()
def _compare(
    models: Models,
    pairs: Sequence[AlignedPair],
    *,
    adapters: Sequence[bool],
    batch_size: int,
    advance: Advance,
) -> list[Compared]:
    """The student with its adapter on or off beside the teacher, who reads each completion once."""
    sums = [Compared() for _ in adapters]
    scored = [len(pair.completion) for pair in pairs]
    for numbers, prefix in _batches(
        models.teacher.network,
        [pair.teacher_prompt for pair in pairs],
        scored,
        batch_size=batch_size,
        reading=lambda: models.adapter(on=False),
    ):
        chosen = [pairs[i] for i in numbers]
        completions = [pair.completion for pair in chosen]
        for_teacher = collate(
            [pair.teacher_prompt for pair in chosen],
            completions,
            pad_id=models.teacher.pad_id,
            prefix=prefix.length,
        )
        for_student = collate(
            [pair.student_prompt for pair in chosen], completions, pad_id=models.student.pad_id
        )
        with models.adapter(on=False):
            teacher = Logits(
                models.teacher.network, for_teacher, cache=partial(prefix.cache, len(numbers))
            )
        add_batch(models, teacher, for_student, dict(zip(adapters, sums, strict=True)))
        advance(len(numbers), for_teacher.tokens + len(adapters) * for_student.tokens)
    return [total.over(sum(scored)) for total in sums]


def add_batch(models: Models, teacher: Logits, batch: Batch, sums: Mapping[bool, Compared]) -> None:
    """Adds a batch to the sums of a student with its adapter off or on; the teacher's logits are made once for all."""
    students = {}
    for on in sums:
        with models.adapter(on=on):
            students[on] = Logits(models.student.network, batch)
    step = min(one.positions for one in (teacher, *students.values()))
    for start in range(0, len(batch.completion_N), step):
        with models.adapter(on=False):
            p_CV = teacher.part(start, start + step)
        for on, student in students.items():
            with models.adapter(on=on):
                q_CV = student.part(start, start + step)
            sums[on].add(p_CV, q_CV, batch.completion_N[start : start + step])


def _batches(
    network: Any,
    prompts: Sequence[list[int]],
    scored: Sequence[int],
    *,
    batch_size: int,
    reading: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[tuple[list[int], SharedPrefix]]:
    """Batches of rows with what the prompts of their context share, which is read once, within `reading`."""
    for group in alike(prompts):
        with reading():
            prefix = SharedPrefix(network, [prompts[i] for i in group])
        lengths = [len(prompts[i]) + scored[i] for i in group]
        wanted = [scored[i] for i in group]
        for batch in prefix.batches(lengths, batch_size=batch_size, scored=wanted):
            yield [group[i] for i in batch], prefix


@torch.inference_mode()
def _cross_entropy(
    model: LanguageModel,
    prompts: list[list[int]],
    completions: list[list[int]],
    batch_size: int,
    advance: Advance,
) -> float:
    """Of the completions' tokens after their prompts, what these share read once; nats a token."""
    scored = [len(completion) for completion in completions]
    total = 0.0
    for numbers, prefix in _batches(model.network, prompts, scored, batch_size=batch_size):
        batch = collate(
            [prompts[i] for i in numbers],
            [completions[i] for i in numbers],
            pad_id=model.pad_id,
            prefix=prefix.length,
        )
        said = Logits(model.network, batch, cache=partial(prefix.cache, len(numbers)))
        for start in range(0, len(batch.completion_N), said.positions):
            logits_CV = said.part(start, start + said.positions)
            gold_C = batch.completion_N[start : start + said.positions].to(logits_CV.device)
            total += float(cross_entropy(logits_CV, gold_C, reduction="sum"))
        advance(len(numbers), batch.tokens)
    return total / sum(scored)


def _kl(p_logits_NV: Tensor, q_logits_NV: Tensor) -> Tensor:
    """KL(p || q) of each position, nats."""
    p_NV, q_NV = p_logits_NV.log_softmax(-1), q_logits_NV.log_softmax(-1)
    return kl_div(q_NV, p_NV, reduction="none", log_target=True).sum(-1)
