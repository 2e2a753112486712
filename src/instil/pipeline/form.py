"""The prompt format of a recipe, and the check of its prompts."""

from __future__ import annotations

from instil.models.load import Outline
from instil.pipeline.rows import CellRows
from instil.prompts.checks import Checks
from instil.prompts.format import PromptFormat, prompt_format
from instil.recipe.canonical import reads_context
from instil.recipe.recipe import Recipe
from instil.system.progress import Display
from instil.tasks.base import PatternTask
from instil.tasks.classification import ClassificationTask


def form_of(recipe: Recipe, model: Outline) -> PromptFormat:
    """Returns the format of the prompts. A task with its own pattern has already filled it in.

    Args:
        recipe: All settings.
        model: The student, with or without its weights.

    Raises:
        ChatTemplateError: the format is chat and the model has no usable template.
        ConfigError: a setting is only for the other format.
    """
    settings, task, own = recipe.prompt, recipe.task, ""
    if task.answers == "labels" and settings.format == "auto":
        settings = settings.model_copy(update={"format": "plain"})
    if isinstance(task, PatternTask):
        settings = settings.model_copy(update={"pattern": "{input}"})
        own = task.prefix + task.pattern
    if isinstance(task, ClassificationTask):
        own += " ".join(word for words in task.verbalizer.values() for word in words)
    return prompt_format(model.tokenizer, settings, ends=model.end_ids, own=own)


def check_prompts_of(recipe: Recipe, rows: CellRows, form: PromptFormat, display: Display) -> None:
    """Checks that the prompts of a cell with labels hold what they should; see `Checks`."""
    checks = Checks(form, written=False)
    sets = [("training row", rows.drawn.training), *((s.name, s.rows) for s in rows.drawn.sets)]
    for name, queries in sets:
        context = rows.alone
        if reads_context(recipe):
            (context,) = rows.contexts.contexts(0, queries[:1], name)
        checks.rows(name, queries, context)
    checks.tell(display)
