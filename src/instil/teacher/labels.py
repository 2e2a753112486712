r"""The teacher of a classification task: what it says of the labels, under each context, computed once and stored.

A stored file holds the predictions of one model, under one context, for one set of rows: what in-context evaluation
reads and what distillation learns from are the same numbers, so the cells of a study share them. The model is loaded
only when something is missing.

A context tilts a model towards some labels whatever the query (Zhao et al. 2021, arXiv:2102.09690). Dividing by a
reference prediction r takes the tilt out:

$$ \hat p_y \propto p_y / r_y $$

with r the prediction for inputs without content (contextual calibration, the same paper), or the mean prediction over
unlabelled inputs (batch calibration, Zhou et al. 2023, arXiv:2309.17249, eq. 3).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from instil.methods import Phase
from instil.models.load import (
    LanguageModel,
    Outline,
    check_same_tokens,
    load,
    outline,
    resolve_dtype,
)
from instil.models.reader import read_labels
from instil.prompts.context import Context
from instil.prompts.format import PromptFormat
from instil.prompts.labels import LabelTokens, check_prompts
from instil.recipe.recipe import Recipe
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.files import digest, written_whole
from instil.system.progress import Advance, Display
from instil.targets.prediction import Targets
from instil.tasks.rows import Row

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Inputs without content, as Zhao et al. take them."""


@dataclass(frozen=True)
class LabelScores:
    """What a model says of R rows' labels.

    Attributes:
        logprobs_RL: Log-probability of each label over the whole vocabulary, nats.
        vocabulary: Of the R x P positions that decide the labels; None if not asked for.
        prompt_tokens: Mean length of the prompts.
    """

    logprobs_RL: Tensor
    vocabulary: Targets | None
    prompt_tokens: float


@dataclass(frozen=True)
class LabelTeacher:
    """A model that reads contexts.

    Attributes:
        outline: The model without its weights.
        dtype: What it computes in.
        form: Renders the prompts.
        choices: The labels' tokens.
        store: Folder of the predictions.
        batch_size: Most rows in a forward pass.
        display: Shows progress.
        counted: Fingerprints of the files whose cost this cell has counted.
    """

    outline: Outline
    dtype: str
    form: PromptFormat
    choices: LabelTokens
    store: Path
    batch_size: int
    display: Display
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
        """The teacher that a recipe names: the student's own weights, or another model of the same tokens.

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
            form=form,
            choices=choices,
            store=store,
            batch_size=recipe.evaluation.batch_size,
            display=display,
        )

    @cached_property
    def model(self) -> LanguageModel:
        """The weights; loading them is put off until a prediction is missing."""
        self.display.note(f"loading {self.outline.name}")
        return load(self.outline.name, dtype=self.dtype)

    def release(self) -> None:
        """Lets go of the weights."""
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
        """What the model says of each query's labels under its context.

        Args:
            what: Shown to a person, also where a row does not fit.
            queries: Rows to ask about.
            contexts: One a query.
            top_k: Keep the next-token targets of the positions that decide the labels, this many of them.
            temperature: Of these targets.
            recorder: Told what it cost, or had cost when it was stored.
            phase: Under this name.

        Returns:
            The predictions, and whether they were in the store.

        Raises:
            AlignmentError: a prompt does not fit the model's window.
        """
        prompts = [self.form.prompt_ids(q.input, c) for q, c in zip(queries, contexts, strict=True)]
        check_prompts(prompts, self.choices.completions, self.outline.window, what=what)
        wanted = [top_k, temperature] if top_k else []
        settings = [self.outline.fingerprint, self.dtype, asdict(self.choices), *wanted]
        fingerprint = digest([*settings, prompts])
        path = self.store / f"{fingerprint[:32]}.safetensors"
        known = fingerprint in self.counted
        there = processes.main_does(path.exists)
        if not there:
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
        if not known:  # a cell that reads a file twice has spent it once
            if processes.is_main():  # it holds what all processes have spent
                recorder.add(phase, json.loads(metadata["spent"]))
            self.counted.add(fingerprint)
        vocabulary = (
            Targets(**{name: tensors[name] for name in KEPT}, temperature=temperature)
            if top_k
            else None
        )
        tokens = sum(map(len, prompts)) / len(prompts)
        return LabelScores(tensors["logprobs_RL"], vocabulary, tokens), there and not known

    def _compute(
        self, prompts: list[list[int]], top_k: int | None, temperature: float, advance: Advance
    ) -> dict[str, Tensor]:
        choices = self.choices

        def make(logits_NV: Tensor) -> dict[str, Tensor]:
            made = {"logprobs_RL": choices.logprobs(logits_NV).cpu()}
            if top_k:
                targets = Targets.of(choices.cut(logits_NV), top_k=top_k, temperature=temperature)
                targets = targets.to(torch.device("cpu"))
                # One line per row: its P positions.
                for name in KEPT:
                    made[name] = getattr(targets, name).unflatten(0, (-1, choices.positions))
            return made

        tensors = read_labels(
            self.model,
            prompts,
            choices.completions,
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
    """Probabilities of the labels among themselves.

    Args:
        logprobs_RL: Log-probability of each label; their sum may be below 1.
        log_reference_L: Logarithm of what to divide by; None: nothing.

    Returns:
        Shape (R, L); each row sums to 1.
    """
    if log_reference_L is not None:
        logprobs_RL = logprobs_RL - log_reference_L
    return logprobs_RL.softmax(-1)


def log_reference(logprobs_RL: Tensor) -> Tensor:
    """Logarithm of the mean prediction over R inputs, shape (L,); as a logarithm it does not vanish."""
    return logprobs_RL.log_softmax(-1).logsumexp(0) - math.log(len(logprobs_RL))


def average(predictions: Sequence[Tensor]) -> Tensor:
    """The mean of several contexts' probabilities (R, L) of the same rows."""
    return torch.stack(list(predictions)).mean(0)
