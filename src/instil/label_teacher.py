"""The teacher of a classification task: what it says of the labels, under each context, computed once and stored.

A stored file holds the predictions of one model, under one context, for one set of rows: what in-context evaluation
reads and what distillation learns from are the same numbers, so the cells of a study share them. The model is loaded
only when something is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from instil.alignment import check_window, collate, pack
from instil.cache import SharedPrefix
from instil.choices import Choices
from instil.config import Recipe
from instil.context import Context
from instil.errors import AlignmentError
from instil.model import (
    LanguageModel,
    Outline,
    check_same_tokens,
    completion_logits,
    load,
    outline,
    resolve_dtype,
)
from instil.packing import LONG_PREFIX, keeps_apart, packs
from instil.progress import Advance, Display
from instil.prompt import PromptFormat
from instil.resources import Recorder
from instil.results import Phase
from instil.rows import Row
from instil.targets import Targets


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


@torch.inference_mode()
def logits(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    *,
    batch_size: int,
    advance: Advance,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yields batches of rows in any order: their numbers, and the logits (rows x P, V) that decide their labels.

    Args:
        model: A language model, or one with a classification head.
        prompts: Whole prompts in token ids; what they share at their start is read once.
        completions: Put after each prompt, as `Choices.completions`.
        batch_size: Most rows in a forward pass.
        advance: Told of progress.

    Raises:
        AlignmentError: a prompt does not fit the model's window.
    """
    check_prompts(prompts, completions, model.window, what="the prompts")
    longest = max(map(len, completions))
    prefix = SharedPrefix(model.network, prompts)
    advance(0, prefix.length)
    ends = (prompts[0][-1:], list(completions[0])), (prompts[-1][-1:], list(completions[-1]))
    long = prefix.can_lend and prefix.length >= LONG_PREFIX
    packed = long and keeps_apart(model.network, *ends)
    own = [(len(prompt) - prefix.length + longest) * len(completions) for prompt in prompts]
    if packed:
        groups = packs(own)
    else:
        lengths = [prefix.length + n for n in own]
        groups = prefix.batches(
            lengths, batch_size=batch_size, scored=[sum(map(len, completions))] * len(prompts)
        )
    for numbers in groups:
        texts = [prompts[i] for i in numbers for _ in completions]
        asked = [list(completion) for _ in numbers for completion in completions]
        if packed:
            batch = pack(texts, asked, prefix=prefix.length)
            with prefix.lent() as cache:
                logits_NV = completion_logits(model.network, batch, cache=cache)
        else:
            batch = collate(texts, asked, pad_id=model.pad_id, prefix=prefix.length)
            cache = prefix.cache(len(texts))
            logits_NV = completion_logits(model.network, batch, cache=cache)
        yield numbers, logits_NV
        advance(len(numbers), batch.tokens)


def check_prompts(
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    window: int | None,
    *,
    what: str,
) -> None:
    """Refuses prompts that a model cannot read whole with what is put after them.

    Args:
        prompts: In token ids.
        completions: What is put after them.
        window: Longest sequence that the model reads, in tokens; None if it has no limit.
        what: Names them in the message.

    Raises:
        AlignmentError: names the row and the numbers.
    """
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise AlignmentError(
                f"{what}, drawn row {number}: no tokens", mend="use a pattern with text in it"
            )
        check_window(
            len(prompt),
            max(map(len, completions)),
            window,
            where=f"{what}, drawn row {number}",
            side="whole",
            mend="take fewer demonstrations or shorten the row,",
        )


def in_order(batches: Iterator[tuple[list[int], Tensor]], rows: int) -> Tensor:
    """Puts what was computed in batches, one line a row, back into the rows' order."""
    numbers, values = zip(*batches, strict=True)
    made = torch.cat(values)
    ordered = torch.empty((rows, *made.shape[1:]), dtype=made.dtype)
    ordered[[i for batch in numbers for i in batch]] = made.cpu()
    return ordered


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
    choices: Choices
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
        choices: Choices,
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
            dtype=str(resolve_dtype(recipe.dtype)).removeprefix("torch."),
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
            what: Shown to a person.
            queries: Rows to ask about.
            contexts: One a query.
            top_k: Keep the next-token targets of the positions that decide the labels, this many of them.
            temperature: Of these targets.
            recorder: Told what it cost, or had cost when it was stored.
            phase: Under this name.

        Returns:
            The predictions, and whether they were in the store.
        """
        prompts = [self.form.prompt_ids(q.input, c) for q, c in zip(queries, contexts, strict=True)]
        wanted = [top_k, temperature] if top_k else []
        settings = [self.outline.fingerprint, self.dtype, asdict(self.choices), *wanted]
        fingerprint = hashlib.sha256(json.dumps([*settings, prompts]).encode()).hexdigest()
        path = self.store / f"{fingerprint[:32]}.safetensors"
        known = fingerprint in self.counted
        reused = path.exists() and not known
        if not path.exists():
            with recorder.phase("load"):
                _ = self.model
            measured = Recorder()
            with measured.phase(phase), self.display.bar(what, len(queries)) as bar:

                def advance(rows: int, tokens: int) -> None:
                    bar.advance(rows)
                    measured.count(phase, tokens=tokens, steps=int(rows > 0))

                tensors = self._compute(prompts, top_k, temperature, advance)
            spent = {"spent": json.dumps(measured.spent(phase)), "fingerprint": fingerprint}
            _write(path, tensors, spent)
        tensors, metadata = _read(path)
        if not known:  # a cell that reads a file twice has spent it once
            recorder.add(phase, json.loads(metadata["spent"]))
            self.counted.add(fingerprint)
        vocabulary = (
            Targets(**{name: tensors[name] for name in KEPT}, temperature=temperature)
            if top_k
            else None
        )
        tokens = sum(map(len, prompts)) / len(prompts)
        return LabelScores(tensors["logprobs_RL"], vocabulary, tokens), reused

    def _compute(
        self, prompts: list[list[int]], top_k: int | None, temperature: float, advance: Advance
    ) -> dict[str, Tensor]:
        choices = self.choices
        order: list[int] = []
        kept: list[Targets] = []

        def scored() -> Iterator[tuple[list[int], Tensor]]:
            for numbers, logits_NV in logits(
                self.model,
                prompts,
                choices.completions,
                batch_size=self.batch_size,
                advance=advance,
            ):
                if top_k:
                    order.extend(numbers)
                    targets = Targets.of(
                        choices.cut(logits_NV), top_k=top_k, temperature=temperature
                    )
                    kept.extend(
                        targets.to(torch.device("cpu")).split([choices.positions] * len(numbers))
                    )
                yield numbers, choices.logprobs(logits_NV)

        tensors = {"logprobs_RL": in_order(scored(), len(prompts))}
        if top_k:
            places = sorted(range(len(order)), key=order.__getitem__)
            targets = Targets.cat([kept[place] for place in places])
            tensors |= {name: getattr(targets, name).contiguous() for name in KEPT}
        return tensors


KEPT = ("ids_NK", "logprobs_NK", "log_tail_N", "logsumexp_N")


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_suffix(".part")
    save_file(tensors, work, metadata=metadata)
    work.replace(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        names: Callable[[], Any] = file.keys
        return {name: file.get_tensor(name) for name in names()}, file.metadata()
