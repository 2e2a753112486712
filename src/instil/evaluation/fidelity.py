"""How methods predict completions: cross-entropy, and how close they are to the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from instil.methods import Method
from instil.models.batch import Batch, collate
from instil.models.forward import Logits
from instil.models.load import LanguageModel
from instil.models.reader import Pass, Reader
from instil.models.roles import Models
from instil.prompts.rendered import RenderedRows
from instil.results.cell import Closeness as Fidelity
from instil.system.progress import Advance


@dataclass(frozen=True)
class Likelihood:
    """How a method predicts completions.

    Attributes:
        cross_entropy: Nats per token.
        fidelity: To the teacher, over the whole vocabulary; None where it is not compared.
    """

    cross_entropy: float
    fidelity: Fidelity | None


def likelihoods(
    models: Models,
    rows: RenderedRows,
    completions: Sequence[list[int]],
    methods: Sequence[Method],
    *,
    compare: bool,
    batch_size: int,
    advance: Advance,
) -> list[Likelihood]:
    """Lets each method predict the completions, token by token.

    Args:
        models: Teacher and student.
        rows: The prompts.
        completions: One per row.
        methods: Whose predictions are scored.
        compare: Compare the methods whose prompts hold no context with the teacher, which reads
            the context.
        batch_size: Most rows in a forward pass.
        advance: Told of progress.

    Returns:
        One per method, in their order.
    """
    asked = _Asked(models, rows, completions, batch_size, advance)
    found = asked.together(methods) if compare else {}
    return [found.get(method) or asked.alone(method) for method in methods]


@dataclass(frozen=True)
class _Asked:
    """Rows with completions to predict."""

    models: Models
    rows: RenderedRows
    completions: Sequence[list[int]]
    batch_size: int
    advance: Advance

    @torch.inference_mode()
    def together(self, methods: Sequence[Method]) -> dict[Method, Likelihood]:
        """The teacher, and all that are compared with it; its logits are made once for all."""
        teachers = [method for method in methods if method.context and not method.learns]
        students = [method for method in methods if not method.context]
        if not (teachers or students):
            return {}
        models, adapters = self.models, [method.learns is not None for method in students]
        own, sums = 0.0, [_Sums() for _ in students]
        for one in _adapter_off(models, self._read(models.teacher, self.rows.teacher_prompts)):
            for_students = collate(
                [self.rows.student_prompts[number] for number in one.rows],
                [self.completions[number] for number in one.rows],
                pad_id=models.student.pad_id,
            )
            for p_CV, of_students, gold_C in beside(models, one.logits, for_students, adapters):
                own += _cross_entropy(p_CV, gold_C) if teachers else 0.0
                for total, q_CV in zip(sums, of_students, strict=True):
                    total.add(p_CV, q_CV, gold_C)
            self.advance(len(one.rows), one.batch.tokens + len(students) * for_students.tokens)
        found = {method: Likelihood(own / self._tokens, None) for method in teachers}
        for method, total in zip(students, sums, strict=True):
            found[method] = total.over(self._tokens)
        return found

    @torch.inference_mode()
    def alone(self, method: Method) -> Likelihood:
        """One that is compared with nothing."""
        model, prompts, total = self.models.model(method), self.rows.prompts(method), 0.0
        with self.models.adapter(on=method.learns is not None):
            for one in self._read(model, prompts):
                gold = torch.split(one.batch.completion_N, one.logits.positions)
                for logits_CV, gold_C in zip(one.logits.chunks(), gold, strict=True):
                    total += _cross_entropy(logits_CV, gold_C)
                self.advance(len(one.rows), one.batch.tokens)
        return Likelihood(total / self._tokens, None)

    @property
    def _tokens(self) -> int:
        return sum(map(len, self.completions))

    def _read(self, model: LanguageModel, prompts: Sequence[list[int]]) -> Iterator[Pass]:
        completions = [[completion] for completion in self.completions]
        return Reader(model, prompts, completions, batch_size=self.batch_size).read()


@dataclass
class _Sums:
    """A student beside its teacher, over tokens: nats of cross-entropy and of KL, and agreement."""

    cross_entropy: float = 0.0
    kl: float = 0.0
    agreement: int = 0

    def add(self, p_NV: Tensor, q_NV: Tensor, gold_N: Tensor) -> None:
        """Adds N tokens: the teacher's logits, the student's, and the ids."""
        vocabulary = min(p_NV.shape[-1], q_NV.shape[-1])
        p_NV, q_NV = p_NV[:, :vocabulary], q_NV[:, :vocabulary]
        self.kl += summed_kl(p_NV, q_NV)
        self.cross_entropy += _cross_entropy(q_NV, gold_N)
        self.agreement += int((p_NV.argmax(-1) == q_NV.argmax(-1)).sum())

    def over(self, tokens: int) -> Likelihood:
        """The means over this number of tokens; rounding may put a KL just below 0."""
        fidelity = Fidelity(
            kl_to_teacher=max(0.0, self.kl / tokens), agreement=self.agreement / tokens
        )
        return Likelihood(self.cross_entropy / tokens, fidelity)


def beside(
    models: Models, teacher: Logits, batch: Batch, adapters: Sequence[bool]
) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    """Lets the student read a batch beside its teacher; few logits are there at a time.

    Args:
        models: Teacher and student.
        teacher: The teacher's logits of the batch's completion tokens.
        batch: What the student reads.
        adapters: Whether its adapter is on, for each time that it reads.

    Yields:
        Of C tokens: the teacher's logits, the student's for each of `adapters`, the tokens.
    """
    students = []
    for on in adapters:
        with models.adapter(on=on):
            students.append(Logits(models.student.network, batch))
    step = min(one.positions for one in (teacher, *students))
    for start in range(0, len(batch.completion_N), step):
        end, of_students = start + step, []
        with models.adapter(on=False):
            p_CV = teacher.part(start, end)
        for on, student in zip(adapters, students, strict=True):
            with models.adapter(on=on):
                of_students.append(student.part(start, end))
        yield p_CV, of_students, batch.completion_N[start:end]


def summed_kl(p_logits_NV: Tensor, q_logits_NV: Tensor) -> float:
    """KL(p || q), nats, the sum over N positions."""
    p_NV, q_NV = p_logits_NV.log_softmax(-1), q_logits_NV.log_softmax(-1)
    return float(kl_div(q_NV, p_NV, reduction="none", log_target=True).sum(-1).sum())


def _cross_entropy(logits_NV: Tensor, gold_N: Tensor) -> float:
    """Nats, the sum over N positions."""
    return float(cross_entropy(logits_NV, gold_N.to(logits_NV.device), reduction="sum"))


def _adapter_off(models: Models, passes: Iterator[Pass]) -> Iterator[Pass]:
    """Runs each pass with the adapter off; what the caller does between them is not."""
    while True:
        with models.adapter(on=False):
            one = next(passes, None)
        if one is None:
            return
        yield one
