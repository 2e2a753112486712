"""Measures how well methods predict completions, and how close they are to the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from instil.losses.forward_kl import ForwardKL
from instil.methods import Method
from instil.models.forward import Logits
from instil.models.load import LanguageModel
from instil.models.reader import COMPLETIONS, Pass, Reader
from instil.models.roles import Models
from instil.prompts.rendered import RenderedRows
from instil.results.scores import Fidelity
from instil.system.progress import Advance
from instil.targets.prediction import Targets


@dataclass(frozen=True)
class RowLikelihood:
    """How well a method predicts each token of a row's completion.

    Attributes:
        nll: Negative log-likelihood of each token, in nats.
        kl: KL(teacher || method) of each token that is compared, in nats: all, the first ones or none.
        agrees: Whether both expect the same token, for the same tokens.
    """

    nll: list[float]
    kl: list[float]
    agrees: list[bool]


@dataclass(frozen=True)
class Likelihood:
    """How well a method predicts completions.

    Attributes:
        rows: Each row with its tokens.
    """

    rows: Sequence[RowLikelihood]

    @property
    def cross_entropy(self) -> float:
        """Cross-entropy of the completions, in nats per token."""
        return sum(sum(row.nll) for row in self.rows) / self._tokens

    @property
    def fidelity(self) -> Fidelity | None:
        """Fidelity to the teacher; None if not compared."""
        tokens = sum(len(row.kl) for row in self.rows)
        if not tokens:
            return None
        return Fidelity(
            # Rounding may give a KL just below 0.
            kl_to_teacher=max(0.0, sum(sum(row.kl) for row in self.rows) / tokens),
            agreement=sum(sum(row.agrees) for row in self.rows) / tokens,
        )

    @property
    def _tokens(self) -> int:
        return sum(len(row.nll) for row in self.rows)


@dataclass(frozen=True)
class Told:
    """A teacher's predictions of completions that are known without its model.

    Attributes:
        targets: Its predictions of each completion.
        known: How many first tokens of each completion they are known for.
    """

    targets: Sequence[Targets]
    known: Sequence[int]


def _told_of(told: Told | None, rows: Sequence[int]) -> Targets | None:
    """What is known of some completions, one after another."""
    return None if told is None else Targets.cat([told.targets[row] for row in rows])


def likelihoods(
    models: Models,
    rows: RenderedRows,
    completions: Sequence[list[int]],
    methods: Sequence[Method],
    *,
    compare: bool,
    batch_size: int,
    advance: Advance,
    told: Told | None = None,
) -> list[Likelihood]:
    """Measures how well each method predicts the tokens of the completions.

    Args:
        models: Teacher and student.
        rows: Rows with their prompts.
        completions: Completions, one per row, in token ids.
        methods: Methods to measure.
        compare: Compare the methods without a context with the teacher, which reads the context.
        batch_size: Maximum number of rows per forward pass.
        advance: Is called with the progress.
        told: What the teacher predicts; None: its model is asked.

    Returns:
        One result per method, in the order of `methods`.
    """
    asked = _Asked(models, rows, completions, batch_size, advance)
    if compare and told is not None:
        return [asked.alone(method, None if method.context else told) for method in methods]
    found = asked.together(methods) if compare else {}
    return [found.get(method) or asked.alone(method) for method in methods]


@dataclass(frozen=True)
class _Asked:
    """Rows with the completions to predict."""

    models: Models
    rows: RenderedRows
    completions: Sequence[list[int]]
    batch_size: int
    advance: Advance

    @torch.inference_mode()
    def together(self, methods: Sequence[Method]) -> dict[Method, Likelihood]:
        """Measures the teacher and the methods compared with it. The teacher runs only once."""
        teachers = [method for method in methods if method.context and not method.learns]
        students = [method for method in methods if not method.context]
        if not (teachers or students):
            return {}
        models, adapters = self.models, [method.learns is not None for method in students]
        readers = [self._reader(models.student, self.rows.student_prompts) for _ in students]
        own, sums, order = _Sums(), [_Sums() for _ in students], list[int]()
        teacher = self._reader(models.teacher, self.rows.teacher_prompts)
        for read in _adapter_off(models, teacher.read()):
            of_students, tokens = list[tuple[bool, Logits]](), read.batch.tokens
            for on, reader in zip(adapters, readers, strict=True):
                with models.adapter(on=on):
                    passes = [*reader.read(read.rows)]
                of_students.append((on, self._in_order(read.rows, passes)))
                tokens += sum(one.batch.tokens for one in passes)
            completions = [self.completions[number] for number in read.rows]
            for p_CV, others, gold_C in beside(models, read.logits, of_students, completions):
                if teachers:
                    own.add(p_CV, gold_C)
                for total, q_CV in zip(sums, others, strict=True):
                    total.add(q_CV, gold_C, teacher_NV=p_CV)
            order += read.rows
            self.advance(len(read.rows), tokens)
        lengths = [(row, len(self.completions[row])) for row in order]
        found = {method: own.of_rows(lengths) for method in teachers}
        for method, total in zip(students, sums, strict=True):
            found[method] = total.of_rows(lengths)
        return found

    @torch.inference_mode()
    def alone(self, method: Method, told: Told | None = None) -> Likelihood:
        """Measures a method, and compares it with what is known of the teacher without its model."""
        model, prompts = self.models.model(method), self.rows.prompts(method)
        total, order = _Sums(), list[int]()
        with self.models.adapter(on=method.learns is not None):
            for read in self._reader(model, prompts).read():
                gold = torch.split(read.batch.completion_N, read.logits.positions)
                known = _told_of(told, read.rows)
                start = 0
                for logits_CV, gold_C in zip(read.logits.chunks(), gold, strict=True):
                    end = start + len(gold_C)
                    total.add(
                        logits_CV, gold_C, told=None if known is None else known.part(start, end)
                    )
                    start = end
                order += read.rows
                self.advance(len(read.rows), read.batch.tokens)
        found = total.of_rows([(row, len(self.completions[row])) for row in order])
        if told is None:
            return found
        pairs = zip(found.rows, told.known, strict=True)
        return Likelihood(
            [replace(row, kl=row.kl[:count], agrees=row.agrees[:count]) for row, count in pairs]
        )

    def _reader(self, model: LanguageModel, prompts: Sequence[list[int]]) -> Reader:
        completions = [[completion] for completion in self.completions]
        size = self.batch_size
        return Reader(model, prompts, completions, packing=COMPLETIONS, batch_size=size)

    def _in_order(self, rows: Sequence[int], passes: Sequence[Pass]) -> Logits:
        """The logits of some rows, which were read in any order."""
        starts, start = dict[int, int](), 0
        for row in (row for one in passes for row in one.rows):
            starts[row] = start
            start += len(self.completions[row])
        positions = [
            starts[row] + place for row in rows for place in range(len(self.completions[row]))
        ]
        return Logits.cat([one.logits for one in passes]).picked(positions)


@dataclass
class _Sums:
    """What is measured of each token, in the order in which the rows are read."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agrees: list[bool] = field(default_factory=list)

    def add(
        self,
        logits_NV: Tensor,
        gold_N: Tensor,
        *,
        teacher_NV: Tensor | None = None,
        told: Targets | None = None,
    ) -> None:
        """Adds N tokens.

        Args:
            logits_NV: Logits of the method, shape (N, V).
            gold_N: Token ids of the completions, shape (N,).
            teacher_NV: Logits of the teacher, shape (N, V); None: there are none.
            told: What else is known of its predictions; None: nothing.
        """
        gold_N = gold_N.to(logits_NV.device)
        self.nll += cross_entropy(logits_NV, gold_N, reduction="none").tolist()
        if teacher_NV is not None:
            vocabulary = min(teacher_NV.shape[-1], logits_NV.shape[-1])
            p_NV, q_NV = teacher_NV[:, :vocabulary], logits_NV[:, :vocabulary]
            self.kl += kl_per_token(p_NV, q_NV).tolist()
            self.agrees += (p_NV.argmax(-1) == q_NV.argmax(-1)).tolist()
        if told is not None:
            told = told.to(logits_NV.device)
            self.kl += ForwardKL().unweighted(logits_NV.float(), gold_N, told).tolist()
            self.agrees += (told.ids_NK[:, 0] == logits_NV.argmax(-1)).tolist()

    def of_rows(self, rows: Sequence[tuple[int, int]]) -> Likelihood:
        """Each row's tokens, in the order of the rows.

        Args:
            rows: Number of each row and its tokens, in the order in which they were added.
        """
        found, start = dict[int, RowLikelihood](), 0
        for row, length in rows:
            part = slice(start, start + length)
            found[row] = RowLikelihood(self.nll[part], self.kl[part], self.agrees[part])
            start += length
        return Likelihood([found[row] for row in sorted(found)])


def beside(
    models: Models,
    teacher: Logits,
    students: Sequence[tuple[bool, Logits]],
    completions: Sequence[list[int]],
) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    """Yields the logits of teacher and student for the same tokens, a few tokens at a time.

    Args:
        models: Teacher and student.
        teacher: Logits of the teacher for the tokens of completions.
        students: Whether the adapter was on, and the logits of the student for the same tokens.
        completions: The completions, in token ids.

    Yields:
        The teacher's logits, shape (C, V); those of each of `students`, shape (C, V); the token
        ids, shape (C,).
    """
    tokens_N = torch.tensor([token for completion in completions for token in completion])
    step = min(logits.positions for logits in (teacher, *(logits for _, logits in students)))
    for start in range(0, len(tokens_N), step):
        end, of_students = start + step, []
        with models.adapter(on=False):
            p_CV = teacher.part(start, end)
        for on, student in students:
            with models.adapter(on=on):
                of_students.append(student.part(start, end))
        yield p_CV, of_students, tokens_N[start:end]


def kl_per_token(p_logits_NV: Tensor, q_logits_NV: Tensor) -> Tensor:
    """Returns KL(p || q) in nats of N positions, shape (N,). Both logits have shape (N, V)."""
    p_NV, q_NV = p_logits_NV.log_softmax(-1), q_logits_NV.log_softmax(-1)
    return kl_div(q_NV, p_NV, reduction="none", log_target=True).sum(-1)


def _adapter_off(models: Models, passes: Iterator[Pass]) -> Iterator[Pass]:
    """Runs each pass with the adapter off. Between the passes, the adapter is as it was."""
    while True:
        with models.adapter(on=False):
            read = next(passes, None)
        if read is None:
            return
        yield read
