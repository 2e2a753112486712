"""The prompt format of a recipe."""

from __future__ import annotations

from instil.models.load import Outline
from instil.prompts.format import PromptFormat, prompt_format
from instil.recipe.recipe import Recipe
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
