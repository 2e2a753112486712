"""Writes the files of a finished cell: results, predictions, settings, environment, model card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import yaml

from instil.pipeline import card
from instil.prompts.context import Context
from instil.prompts.format import ChatPrompt, PlainPrompt, PromptFormat
from instil.recipe.canonical import reads_context
from instil.recipe.recipe import Recipe
from instil.results.schema import (
    CONFIG,
    CONTEXT,
    ENVIRONMENT,
    PREDICTIONS,
    RESULTS,
    ContextFacts,
    Message,
    Prediction,
    Results,
    SentPrompt,
)
from instil.system import environment
from instil.system.files import write_lines

ADAPTER = "adapter"


def write(
    folder: Path,
    results: Results,
    predictions: Iterable[Prediction],
    *,
    example: str,
    context: str | None,
) -> None:
    """Writes all files except the weights. `results.json` is the last one: it marks a cell as done.

    Args:
        folder: Folder of the cell. An adapter in it gets a model card.
        results: Results of the cell.
        predictions: Predictions of all methods.
        example: Query for the code example of the model card.
        context: Prompt of the teacher, if all rows have the same context; else None.
    """
    write_lines(folder / PREDICTIONS, predictions)
    texts = {
        CONFIG: yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True),
        ENVIRONMENT: json.dumps(environment.describe(), indent=1) + "\n",
    }
    if context is not None:
        texts[CONTEXT] = context
    if (folder / ADAPTER).exists():
        texts[f"{ADAPTER}/README.md"] = card.render(results, example=example)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    results.write(folder / RESULTS)


def sent_prompt(
    form: PromptFormat,
    alone: Context,
    *,
    pattern: str = "{input}",
    max_new_tokens: int | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
) -> SentPrompt:
    """Describes the prompt of a student.

    Args:
        form: Renders the prompts.
        alone: Text that the student reads before the query.
        pattern: Pattern of the query, if the task has one.
        max_new_tokens: Maximum length of an answer, in tokens.
        words: Label -> its surface forms.
    """
    chat = isinstance(form, ChatPrompt)
    messages = form.messages(pattern, alone) if isinstance(form, ChatPrompt) else None
    return SentPrompt(
        format="chat" if chat else "plain",
        pattern=form.text(pattern, alone) if isinstance(form, PlainPrompt) else None,
        messages=messages and [Message.model_validate(message) for message in messages],
        template_kwargs=form.template_kwargs if isinstance(form, ChatPrompt) else {},
        date=form.date and form.date.isoformat(),
        thinking_end=form.thinks if words is None else None,
        stop=form.stop if words is None else [],
        end_ids=form.end_ids,
        max_new_tokens=max_new_tokens,
        words={label: list(forms) for label, forms in (words or {}).items()},
    )


def context_facts(
    recipe: Recipe,
    context: Context | None,
    *,
    teacher: Sequence[int] = (),
    student: Sequence[int] = (),
) -> ContextFacts | None:
    """Describes the context of a recipe; returns None if no method reads a context.

    Args:
        recipe: All settings.
        context: The context, if it is the same for all rows; else None.
        teacher: Lengths of prompts with the context, in tokens.
        student: Lengths of the prompts of the same rows without the context.
    """
    if not reads_context(recipe):
        return None
    k = recipe.demonstrations.k if context is None else len(context.demonstrations)
    parts = [f"{k} demonstration{'s' * (k != 1)}"] if k else []
    if context is not None:
        parts = [
            *(["a document"] if context.document else []),
            *(["an instruction"] if context.instruction else []),
            *parts,
        ]
    elif recipe.teacher.contexts > 1:
        parts = [f"{recipe.teacher.contexts} contexts of {part}" for part in parts]
    *others, last = parts or ["nothing"]
    tokens = fmean(teacher) - fmean(student) if teacher else None
    return ContextFacts(
        description=f"{', '.join(others)} and {last}" if others else last,
        k=k,
        tokens=tokens,
        sha256=context and context.digest(),
    )
