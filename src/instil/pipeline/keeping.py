"""The texts that a cell keeps, ready for the training."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instil.models.load import LanguageModel
from instil.pipeline.steps import Steps
from instil.recipe.recipe import Recipe
from instil.system import processes
from instil.system.disk import cache_folder
from instil.teacher.keeping import Keeper
from instil.training.keeping import Kept

FOLDER = "kept"


def kept_texts(steps: Steps[Any, Any], base: Callable[[], LanguageModel]) -> Kept | None:
    """The texts on which the student stays as its base is; None if the cell keeps nothing.

    All processes of a launch must call this before the training.

    Args:
        steps: The cell.
        base: Gives the student before training. An adapter on it is turned off.

    Raises:
        AlignmentError: a text of a file does not fit the model's window.
        DataFormatError: a file cannot be read.
        FieldError: a row of a file has neither a text nor an input.
    """
    recipe, keep = steps.recipe, steps.recipe.keep
    if not keep.on or steps.method.learns != "targets":
        return None
    folder = base_folder(recipe, steps.store)
    keeper = Keeper(recipe, base(), steps.form, folder, steps.recorder, steps.display)
    lessons = keeper.lessons()
    if lessons is None:
        return None
    per_batch = keep.per_batch(recipe.training.batch_size)
    if per_batch > len(lessons):
        steps.display.warn(
            f"keep.share is {keep.share:g}, which is {per_batch} texts per batch, but there are only "
            f"{len(lessons)}; each batch holds all of them (raise keep.rows, or lower keep.share)"
        )
    return Kept(lessons, per_batch, keep.weight, recipe.seed)


def base_folder(recipe: Recipe, store: Path) -> Path:
    """Where a base's own texts lie: for all runs, or for this one if that folder cannot be used.

    The processes of a launch may be on several machines. They share only the folder of the targets.

    Args:
        recipe: All settings.
        store: Folder of what the run's teacher writes, if the recipe sets none.
    """
    usual = cache_folder() / FOLDER
    own = (recipe.teacher.store or store) / FOLDER

    def writable() -> bool:
        try:
            usual.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        return os.access(usual, os.W_OK)

    return usual if processes.count() == 1 and writable() else own
