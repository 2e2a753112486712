"""The models that a recipe names."""

from __future__ import annotations

from typing import cast

from instil.models.roles import Models
from instil.models.tuning import LoRA
from instil.recipe.recipe import Recipe
from instil.system.progress import Display


def load_models(recipe: Recipe, display: Display) -> Models:
    """Loads teacher and student; see `Models.load`."""
    return Models.load(
        recipe.model,
        recipe.teacher.model,
        dtype=recipe.dtype,
        tuning=cast(LoRA, recipe.tuning),
        seed=recipe.seed,
        display=display,
    )
