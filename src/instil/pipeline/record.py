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
from instil.results.logs import Dropped
from instil.results.schema import (
    CONFIG,
    CONTEXT,
    ENVIRONMENT,
    EVALUATION,
    PREDICTIONS,
    RESULTS,
    ContextFacts,
    EvaluationRow,
    Message,
    Prediction,
    Results,
    SentPrompt,
)
from instil.system import environment
from instil.system.files import write_lines

ADAPTER = "adapter"
DROPPED = "dropped.jsonl"
PARTS = "context.json"


def write(
    folder: Path,
    results: Results,
    predictions: Iterable[Prediction],
    *,
    example: str,
    context: Context | None,
    context_text: str | None,
    rows: Sequence[EvaluationRow] = (),
    dropped: Sequence[Dropped] = (),
) -> None:
    """Writes all files except the weights. `results.json` is the last one: it marks a cell as done.

    Args:
        folder: Folder of the cell. An adapter in it gets a model card.
        results: Results of the cell.
        predictions: Predictions of all methods.
        example: Query for the code example of the model card.
        context: What the teacher reads, if it is the same for all rows; else None.
        context_text: Prompt of the teacher, under the same condition.
        rows: The evaluation rows. Free text only.
        dropped: Rows that were left out.
    """
    write_lines(folder / PREDICTIONS, predictions)
    if rows:
        write_lines(folder / EVALUATION, rows)
    if dropped:
        write_lines(folder / DROPPED, dropped)
    texts = {
        CONFIG: yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True),
        ENVIRONMENT: json.dumps(environment.describe(), indent=1) + "\n",
    }
    if context_text is not None:
        texts[CONTEXT] = context_text
    if context is not None:
        texts[PARTS] = json.dumps(context.parts(), indent=1, ensure_ascii=False) + "\n"
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
    return SentPrompt(
        format="chat" if chat else "plain",
        pattern=form.text(pattern, alone) if isinstance(form, PlainPrompt) else None,
        messages=messages_of(form, pattern, alone) or None,
        template_kwargs=form.template_kwargs if isinstance(form, ChatPrompt) else {},
        date=form.date and form.date.isoformat(),
        thinking_end=form.thinks if words is None else None,
        stop=form.stop if words is None else [],
        end_ids=form.end_ids,
        max_new_tokens=max_new_tokens,
        words={label: list(forms) for label, forms in (words or {}).items()},
    )


def messages_of(form: PromptFormat, query: str, context: Context) -> list[Message]:
    """The turns of a chat prompt; empty for the plain format."""
    if not isinstance(form, ChatPrompt):
        return []
    turns = form.messages(query, context)
    return [Message(role=one.role, content=one.content) for one in turns]


def context_facts(
    recipe: Recipe,
    context: Context | None,
    form: PromptFormat,
    *,
    teacher: Sequence[int] = (),
    student: Sequence[int] = (),
    own: bool = False,
) -> ContextFacts | None:
    """Describes the context of a recipe; returns None if no method reads a context.

    Args:
        recipe: All settings.
        context: The context, if it is the same for all rows; else None.
        form: Renders the prompts.
        teacher: Lengths of prompts with the context, in tokens.
        student: Lengths of the prompts of the same rows without the context.
        own: Whether rows have contexts of their own.
    """
    if not reads_context(recipe):
        return None
    k = recipe.demonstrations.k if context is None else len(context.demonstrations)
    parts = [f"{k} demonstration{'s' * (k != 1)}"] if k else []
    if context is not None:
        parts = [
            *(["a document"] if context.document else []),
            *(["an instruction"] if context.instruction else []),
            *_head(context),
            *(["a text of each row"] if own else []),
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
        messages=[] if context is None else messages_of(form, "{input}", context),
    )


def _head(context: Context) -> list[str]:
    """Describes the messages that conversations begin with."""
    systems = sum(message.role == "system" for message in context.head)
    turns = len(context.head) - systems
    return [
        *(["the conversations' system prompt"] if systems else []),
        *([f"{turns} example turns"] if turns else []),
    ]
