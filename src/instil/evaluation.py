"""Judging the student: answers, latency, fidelity to the teacher, drift from the base."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from instil.alignment import AlignedPair, Batch, collate
from instil.cache import SharedPrefix, alike
from instil.cell import Closeness
from instil.context import Context
from instil.forward import Logits
from instil.generation import Decoding, generate
from instil.method import RUN_METHODS, Method
from instil.metrics import exact_match, proportion
from instil.model import LanguageModel
from instil.prepared import PreparedRows
from instil.progress import Advance
from instil.prompt import PromptFormat
from instil.results import Drift, Fidelity, MethodName, MethodResult, Pair, Prediction

# Rows answered one at a time to learn what a query costs when it comes alone.
LATENCY_ROWS = 3
DRIFT_WINDOW = 256  # tokens a piece of unrelated text


@dataclass(frozen=True)
class Judged:
    """Teacher and student, as evaluation sees them.

    Attributes:
        teacher: Answers with the context.
        student: Answers without it; carries the adapter.
        prompt_format: Renders the prompts.
        context: What the teacher reads.
    """

    teacher: LanguageModel
    student: LanguageModel
    prompt_format: PromptFormat
    context: Context

    def model(self, method: Method) -> LanguageModel:
        """The model that answers with this method: the teacher if the context is sent."""
        return self.teacher if method.context else self.student

    def adapter(self, *, on: bool) -> AbstractContextManager[object]:
        """Runs what is inside with the adapter on, or with the untouched base."""
        return nullcontext() if on else self.student.network.disable_adapter()  # type: ignore[operator]


def answer(
    judged: Judged, name: MethodName, rows: PreparedRows, decoding: Decoding, *, advance: Advance
) -> tuple[MethodResult, list[Prediction]]:
    """Lets a method answer all rows, greedily, and some of them alone to see what one costs.

    Args:
        judged: The models and prompts.
        name: Of the method.
        rows: The evaluation rows; rows without an output are answered but not counted.
        decoding: Limits.
        advance: Told of progress.
    """
    method = RUN_METHODS[name]
    prompts = rows.prompts(method)
    model = judged.model(method)
    with judged.adapter(on=method.learns is not None):
        outputs = generate(model, prompts, judged.prompt_format, decoding, advance=advance)
        seconds = _seconds_per_query(model, prompts, judged.prompt_format, decoding)
    predictions = []
    for number, (row, output) in enumerate(zip(rows.rows, outputs, strict=True)):
        text = judged.prompt_format.decode(output.ids)
        correct = None if row.output is None else exact_match(text, row.output)
        predictions.append(
            Prediction(
                row=number,
                method=name,
                input=row.input,
                expected=row.output,
                output=text,
                correct=correct,
            )
        )
    counted = [p.correct for p in predictions if p.correct is not None]
    result = MethodResult(
        accuracy=proportion(counted) if counted else None,
        prompt_tokens_mean=sum(map(len, prompts)) / len(prompts),
        seconds_per_query=seconds,
    )
    return result, predictions


def _seconds_per_query(
    model: LanguageModel, prompts: list[list[int]], prompt_format: PromptFormat, decoding: Decoding
) -> float:
    """Mean time of one query that comes alone, its whole prompt read, as a user without a prefix cache pays it."""
    alone = replace(decoding, batch_size=1)
    sample = prompts[:: max(1, len(prompts) // LATENCY_ROWS)][:LATENCY_ROWS]
    seconds = []
    for prompt in [sample[0], *sample]:  # the first one warms up
        start = time.perf_counter()
        generate(model, [prompt], prompt_format, alone, advance=lambda rows, tokens: None)
        seconds.append(time.perf_counter() - start)
    return sum(seconds[1:]) / len(sample)


def fidelity(
    judged: Judged, pairs: Sequence[AlignedPair], *, gold: bool, batch_size: int, advance: Advance
) -> Fidelity:
    """Compares predictions with the teacher's on held-out completions, token by token, over the whole vocabulary.

    Args:
        judged: The models.
        pairs: Held-out pairs.
        gold: Whether the completions are gold ones.
        batch_size: Most rows in a forward pass.
        advance: Told of progress.
    """
    before, after = _compare(
        judged, pairs, adapters=(False, True), batch_size=batch_size, advance=advance
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
    judged: Judged,
    rows: PreparedRows,
    method: Method,
    *,
    compare: bool,
    batch_size: int,
    advance: Advance,
) -> GoldScore:
    """Reads gold answers as a method does, and as its teacher does.

    Args:
        judged: The models.
        rows: With gold completions.
        method: Who reads.
        compare: Compare with the teacher, who reads the context; for methods that do not.
        batch_size: Most rows in a forward pass.
        advance: Told of progress.
    """
    completions, on = rows.need_gold(), method.learns is not None
    if not compare:
        model, prompts = judged.model(method), rows.prompts(method)
        with judged.adapter(on=on):
            entropy = _cross_entropy(model, prompts, completions, batch_size, advance)
        return GoldScore(entropy, None)
    pairs = [
        AlignedPair(number, *row)
        for number, row in enumerate(
            zip(rows.teacher_prompts, rows.student_prompts, completions, strict=True)
        )
    ]
    (own,) = _compare(judged, pairs, adapters=(on,), batch_size=batch_size, advance=advance)
    closeness = Closeness(kl_to_teacher=max(0.0, own.kl), agreement=own.agreement)
    return GoldScore(own.cross_entropy, closeness)


@dataclass
class _Compared:
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

    def over(self, tokens: int) -> _Compared:
        return _Compared(self.kl / tokens, self.cross_entropy / tokens, self.agreement / tokens)


@torch.inference_mode()
def _compare(
    judged: Judged,
    pairs: Sequence[AlignedPair],
    *,
    adapters: Sequence[bool],
    batch_size: int,
    advance: Advance,
) -> list[_Compared]:
    """The student with its adapter on or off beside the teacher, who reads each completion once."""
    sums = [_Compared() for _ in adapters]
    scored = [len(pair.completion) for pair in pairs]
    for numbers, prefix in _batches(
        judged.teacher.network,
        [pair.teacher_prompt for pair in pairs],
        scored,
        batch_size=batch_size,
        reading=lambda: judged.adapter(on=False),
    ):
        chosen = [pairs[i] for i in numbers]
        completions = [pair.completion for pair in chosen]
        for_teacher = collate(
            [pair.teacher_prompt for pair in chosen],
            completions,
            pad_id=judged.teacher.pad_id,
            prefix=prefix.length,
        )
        for_student = collate(
            [pair.student_prompt for pair in chosen], completions, pad_id=judged.student.pad_id
        )
        with judged.adapter(on=False):
            teacher = Logits(
                judged.teacher.network, for_teacher, cache=partial(prefix.cache, len(numbers))
            )
        _add(judged, teacher, for_student, dict(zip(adapters, sums, strict=True)))
        advance(len(numbers), for_teacher.tokens + len(adapters) * for_student.tokens)
    return [total.over(sum(scored)) for total in sums]


def _add(judged: Judged, teacher: Logits, batch: Batch, sums: Mapping[bool, _Compared]) -> None:
    """Adds a batch to the sums of a student with its adapter off or on; the teacher's logits are made once for all."""
    students = {}
    for on in sums:
        with judged.adapter(on=on):
            students[on] = Logits(judged.student.network, batch)
    step = min(one.positions for one in (teacher, *students.values()))
    for start in range(0, len(batch.completion_N), step):
        with judged.adapter(on=False):
            p_CV = teacher.part(start, start + step)
        for on, student in students.items():
            with judged.adapter(on=on):
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


@torch.inference_mode()
def drift(judged: Judged, *, advance: Advance) -> Drift:
    """KL(base || student) on text that has nothing to do with the task.

    Args:
        judged: The models.
        advance: Told of progress.
    """
    network, total, tokens = judged.student.network, _Compared(), 0
    for piece in _unrelated_text(judged.student):
        batch = collate([piece[:1]], [piece[1:]], pad_id=judged.student.pad_id)
        with judged.adapter(on=False):
            base = Logits(network, batch)
        _add(judged, base, batch, {True: total})
        tokens += len(batch.completion_N)
        advance(1, 2 * batch.tokens)
    return Drift(kl_to_base=total.over(tokens).kl, n_tokens=tokens)


def drift_pieces(model: LanguageModel) -> int:
    """How many pieces of unrelated text `drift` reads."""
    return sum(1 for _ in _unrelated_text(model))


def _unrelated_text(model: LanguageModel) -> Iterator[list[int]]:
    window = min(DRIFT_WINDOW, model.window or DRIFT_WINDOW)
    text = (files("instil") / "data" / "unrelated.txt").read_text(encoding="utf-8")
    for paragraph in text.split("\n\n"):
        ids = model.tokenizer(paragraph.strip())["input_ids"][:window]
        if len(ids) > 1:
            yield ids


def _kl(p_logits_NV: Tensor, q_logits_NV: Tensor) -> Tensor:
    """KL(p || q) of each position, nats."""
    p_NV, q_NV = p_logits_NV.log_softmax(-1), q_logits_NV.log_softmax(-1)
    return kl_div(q_NV, p_NV, reduction="none", log_target=True).sum(-1)
