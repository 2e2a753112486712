"""Retention: whether the student answers general prompts as its base does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import mean

import yaml

from instil.evaluation.answers import answer
from instil.evaluation.fidelity import likelihoods
from instil.methods import METHODS
from instil.metrics.rules import Asked, Rule, rules_of
from instil.models.generate import Decoding
from instil.models.roles import Models
from instil.prompts.format import PromptFormat
from instil.prompts.rendered import RenderedRows
from instil.results.scores import KindRetention, Retention
from instil.results.statistics import proportion
from instil.system import processes
from instil.system.progress import Advance
from instil.tasks.rows import Row

FORMATS = "formats"
"""The kind of prompts that ask for a form; a file of rules, whose names are the prompts."""
KINDS = ("instructions", "questions", "sums", "code", "languages", "small talk", FORMATS)
"""The kinds of prompts. Each other kind is a file with a prompt a line."""
TOKENS = 32
"""Most tokens of an answer. Where a student differs from its base, it does so early."""


@cache
def general_prompts(kind: str) -> tuple[str, ...]:
    """The prompts of a kind."""
    if kind == FORMATS:
        return tuple(formats())
    name = f"{kind.replace(' ', '_')}.txt"
    text = (files("instil.evaluation") / "general" / name).read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip())


@cache
def formats() -> dict[str, Rule]:
    """Prompt -> the form that it asks for (as in Zhou et al. 2023, arXiv:2311.07911)."""
    name = f"{FORMATS}.yaml"
    text = (files("instil.evaluation") / "general" / name).read_text(encoding="utf-8")
    return {rule.name: rule for rule in rules_of(yaml.safe_load(text), name)}


def prompts_by_kind(most: int | None) -> dict[str, list[str]]:
    """The prompts of each kind.

    Args:
        most: About how many prompts there are in all; None: all of them.
    """
    share = None if most is None else max(1, round(most / len(KINDS)))
    return {kind: [*general_prompts(kind)[:share]] for kind in KINDS}


@dataclass(frozen=True)
class General:
    """General prompts, as a model reads them without any context.

    Attributes:
        kinds: Kind of each prompt.
        rows: The prompts.
    """

    kinds: list[str]
    rows: RenderedRows

    @classmethod
    def of(cls, form: PromptFormat, most: int | None) -> General:
        """Renders the prompts.

        Args:
            form: Prompt format.
            most: See `prompts_by_kind`.
        """
        asked = [(kind, text) for kind, of in prompts_by_kind(most).items() for text in of]
        ids = [form.prompt_ids(text) for _, text in asked]
        rows = RenderedRows(
            "general prompt", [Row(text) for _, text in asked], ids, ids, [None] * len(ids)
        )
        return cls([kind for kind, _ in asked], rows)


def retention(
    models: Models,
    form: PromptFormat,
    general: General,
    base: Sequence[list[int]],
    *,
    batch_size: int,
    advance: Advance,
) -> Retention:
    """Compares the answers of the student with those of its base, and its predictions on these.

    All processes of a launch must call it: each of them decodes its share.

    Args:
        models: Teacher and student; the base is the student with its adapter off.
        form: Prompt format.
        general: The prompts.
        base: The base's answers, decoded as `decoding` says.
        batch_size: Most rows that are read or decoded together.
        advance: Is called with the progress.
    """
    own, student = Models(teacher=models.student, student=models.student), METHODS["distillation"]
    said = [
        one.ids
        for one in answer(
            own,
            form,
            general.rows.student_prompts,
            student,
            decoding(batch_size),
            advance=advance,
        )
    ]

    def read() -> list[list[float]]:
        (found,) = likelihoods(
            own, general.rows, base, [student], compare=True, batch_size=batch_size, advance=advance
        )
        return [row.kl for row in found.rows]

    kl = processes.main_does(read)
    kinds = {}
    for kind in dict.fromkeys(general.kinds):
        numbers = [n for n, one in enumerate(general.kinds) if one == kind]
        kinds[kind] = _of_kind(numbers, base, said, kl)
        if kind == FORMATS:
            asked = [general.rows.rows[n].input for n in numbers]
            obeyed = [
                proportion(
                    [
                        _obeys(text, form.decode(of[n]))
                        for n, text in zip(numbers, asked, strict=True)
                    ]
                )
                for of in (base, said)
            ]
            kinds[kind] = kinds[kind].model_copy(
                update={"obeyed_by_base": obeyed[0], "obeyed": obeyed[1]}
            )
    whole = _of_kind(range(len(base)), base, said, kl)
    return Retention(**whole.model_dump(), kinds=kinds)


def _obeys(prompt: str, written: str) -> bool:
    return bool(formats()[prompt].kept(written, Asked(prompt, prompt)))


def decoding(batch_size: int) -> Decoding:
    """How general prompts are answered."""
    return Decoding(TOKENS, batch_size=batch_size, stop_repeats=True)


def _of_kind(
    numbers: Sequence[int],
    before: Sequence[list[int]],
    after: Sequence[list[int]],
    kl: Sequence[Sequence[float]],
) -> KindRetention:
    values = [value for number in numbers for value in kl[number]]
    lengths = [mean(len(said[number]) for number in numbers) for said in (before, after)]
    return KindRetention(
        kl_to_base=max(0.0, mean(values)),
        same_answer=proportion([before[n] == after[n] for n in numbers]),
        length=lengths[1] / lengths[0],
        prompts=len(numbers),
    )
