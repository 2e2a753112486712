r"""The teacher of a classification task: its label probabilities, computed once and stored.

A file holds the predictions of one model, with one context per row, for one set of rows. In-context
evaluation and distillation read the same file, and the cells of a study share it. The model is
loaded only if a prediction is missing.

A context biases a model towards some labels, independent of the query (Zhao et al. 2021,
arXiv:2102.09690). Dividing by a reference prediction r removes this bias:

$$ \hat p_y \propto p_y / r_y $$

Here r is the prediction for inputs without content (contextual calibration, the same paper), or the
mean prediction over unlabelled inputs (batch calibration, Zhou et al. 2023, arXiv:2309.17249, eq.
3).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from instil.losses.label_kl import LabelTargets
from instil.methods import Phase
from instil.models.branches import Branches
from instil.models.label_reader import read_labels
from instil.models.load import (
    PLAIN,
    LanguageModel,
    Outline,
    check_same_tokens,
    load,
    outline,
)
from instil.models.loading import Loading
from instil.models.number_format import resolve_dtype
from instil.prompts.context import Context
from instil.prompts.format import PromptFormat
from instil.prompts.labels import LabelTokens, check_prompts
from instil.recipe.recipe import Recipe
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.environment import ALGORITHM
from instil.system.files import digest_ids, written_whole
from instil.system.progress import Advance, Display
from instil.targets.prediction import Targets
from instil.tasks.rows import Row

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Inputs without content, as in Zhao et al."""


@dataclass(frozen=True)
class LabelLesson:
    """One training row of a classification task.

    Attributes:
        prompt: The student's prompt, in token ids.
        branches: What is read after it, so that every label can be scored.
        targets: The row's label, and the teacher's probabilities.
    """

    prompt: list[int]
    branches: Branches
    targets: LabelTargets
    teacher_prompt: None = None

    @property
    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """The branches as sequences of their own, each with the prompt before it."""
        return [(self.prompt + read, completion) for read, completion in self.branches.pieces]

    @property
    def terms(self) -> int:
        """Number of terms that the row adds to the loss."""
        return 1


@dataclass(frozen=True)
class LabelScores:
    """A model's predictions for R rows and L labels.

    Attributes:
        logprobs_RL: Log-probability of each label over the vocabulary, in nats, shape (R, L).
        vocabulary: Next-token targets at the R x P positions that decide the labels; None if they
            are not needed.
        prompt_tokens: Mean length of the prompts.
    """

    logprobs_RL: Tensor
    vocabulary: Targets | None
    prompt_tokens: float


@dataclass(frozen=True)
class LabelTeacher:
    """Gives a model's predictions with contexts, and stores them.

    Attributes:
        outline: The model without its weights.
        dtype: Data type of the weights.
        form: Prompt format.
        choices: The labels' tokens.
        store: Folder of the predictions.
        batch_size: Maximum rows in a forward pass.
        display: Shows progress.
        how: How the weights are loaded.
        counted: Fingerprints of the files whose cost this cell has already counted.
    """

    outline: Outline
    dtype: str
    form: PromptFormat
    choices: LabelTokens
    store: Path
    batch_size: int
    display: Display
    how: Loading = PLAIN
    counted: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        student: Outline,
        form: PromptFormat,
        choices: LabelTokens,
        store: Path,
        display: Display,
    ) -> LabelTeacher:
        """The teacher of a recipe: the student's weights, or another model with the same tokens.

        Raises:
            TokenizerMismatchError: the two models' tokens differ.
        """
        teaching = student
        if recipe.teacher.model is not None:
            teaching = outline(recipe.teacher.model)
            check_same_tokens(teaching, student)
        return cls(
            outline=teaching,
            dtype=resolve_dtype(recipe.dtype),
            how=recipe.loading.of_teacher,
            form=form,
            choices=choices,
            store=store,
            batch_size=recipe.evaluation.batch_size,
            display=display,
        )

    @cached_property
    def model(self) -> LanguageModel:
        """The model with its weights, which are loaded only if a prediction is missing."""
        self.display.note(f"loading {self.outline.name}")
        return load(self.outline.name, dtype=self.dtype, how=self.how)

    def release(self) -> None:
        """Frees the weights."""
        self.__dict__.pop("model", None)

    def score(
        self,
        what: str,
        queries: Sequence[Row],
        contexts: Sequence[Context],
        *,
        top_k: int | None = None,
        temperature: float = 1.0,
        recorder: Recorder,
        phase: Phase,
    ) -> tuple[LabelScores, bool]:
        """The model's predictions for queries with their contexts.

        Args:
            what: What is scored, for the progress bar and error messages.
            queries: The queries.
            contexts: One context per query.
            top_k: Number of next-token targets to store per position that decides the labels; None
                for no targets.
            temperature: Temperature of these targets.
            recorder: Counts the cost; for stored predictions, the cost when they were computed.
            phase: Phase that the cost belongs to.

        Returns:
            The predictions, and whether they were stored before and not yet counted in this cell.

        Raises:
            AlignmentError: a prompt does not fit the model's window.
        """
        prompts = self.form.prompts(queries, contexts)
        check_prompts(prompts, self.choices.branches, self.outline.window, what=what)
        self.outline.check_ids(prompts, where=f"{what}, row")
        wanted = [top_k, temperature] if top_k else []
        made_by = [ALGORITHM, self.outline.fingerprint, self.dtype, *self.how.identity]
        settings = [*made_by, asdict(self.choices), *wanted]
        fingerprint = digest_ids(settings, prompts)
        path = self.store / f"{fingerprint[:32]}.safetensors"
        known = fingerprint in self.counted
        stored = processes.main_does(path.exists)
        if not stored:
            with recorder.phase("load"):
                _ = self.model
            measured = Recorder()
            with measured.phase(phase), self.display.bar(what, len(queries)) as bar:
                advance = measured.advance(phase, bar.advance)
                tensors = self._compute(prompts, top_k, temperature, advance)
            measured.add_other_processes()
            spent = {"spent": json.dumps(measured.spent(phase)), "fingerprint": fingerprint}
            processes.main_does(lambda: _write(path, tensors, spent))
        tensors, metadata = _read(path)
        if not known:  # a cell that reads a file twice counts its cost once
            if processes.is_main():  # the stored cost is that of all processes
                recorder.add(phase, json.loads(metadata["spent"]))
            self.counted.add(fingerprint)
        vocabulary = (
            Targets(**{name: tensors[name] for name in KEPT}, temperature=temperature)
            if top_k
            else None
        )
        tokens = sum(map(len, prompts)) / len(prompts)
        return LabelScores(tensors["logprobs_RL"], vocabulary, tokens), stored and not known

    def _compute(
        self,
        prompts: Sequence[list[int]],
        top_k: int | None,
        temperature: float,
        advance: Advance,
    ) -> dict[str, Tensor]:
        choices = self.choices

        def make(chunks: Iterator[Tensor]) -> dict[str, Tensor]:
            logprobs, targets, end = [], [], 0
            for logits_CV in chunks:
                start, end = end, end + len(logits_CV)
                logprobs.append(choices.token_logprobs(logits_CV, start))
                if top_k:
                    cut_CV = choices.cut(logits_CV)
                    targets.append(Targets.of(cut_CV, top_k=top_k, temperature=temperature))
            made = {"logprobs_RL": choices.joined(torch.cat(logprobs)).cpu()}
            if top_k:
                joined = Targets.cat(targets).to(torch.device("cpu"))
                # Group the positions by row: shape (R, P, …).
                for name in KEPT:
                    made[name] = getattr(joined, name).unflatten(0, (-1, choices.positions))
            return made

        tensors = read_labels(
            self.model,
            prompts,
            choices.branches,
            batch_size=self.batch_size,
            advance=advance,
            make=make,
        )
        return {
            name: tensor.flatten(0, 1) if name in KEPT else tensor
            for name, tensor in tensors.items()
        }


KEPT = ("ids_NK", "logprobs_NK", "log_tail_N", "logsumexp_N")


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as work:
        save_file(tensors, work, metadata=metadata)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        names: Callable[[], Any] = file.keys
        return {name: file.get_tensor(name) for name in names()}, file.metadata()


def probabilities(logprobs_RL: Tensor, log_reference_L: Tensor | None = None) -> Tensor:
    """Probabilities of the labels, normalised over the labels.

    Args:
        logprobs_RL: Log-probability of each label; the probabilities may sum to less than 1.
        log_reference_L: Logarithm of the reference to divide by; None for no division.

    Returns:
        Probabilities of shape (R, L); each row sums to 1.
    """
    if log_reference_L is not None:
        logprobs_RL = logprobs_RL - log_reference_L
    return logprobs_RL.softmax(-1)


def log_reference(logprobs_RL: Tensor) -> Tensor:
    """Logarithm of the mean prediction over R inputs, shape (L,); a logarithm cannot underflow."""
    return logprobs_RL.log_softmax(-1).logsumexp(0) - math.log(len(logprobs_RL))


def average(predictions: Sequence[Tensor]) -> Tensor:
    """The mean of the probabilities (R, L) of the same rows with several contexts."""
    return torch.stack(list(predictions)).mean(0)
