"""The rows of a recipe, drawn and checked."""

from __future__ import annotations

from collections.abc import Iterable

from instil.errors import ConfigError, InstilError
from instil.methods import METHODS
from instil.prompts.demonstrations import check_pool_size
from instil.recipe.recipe import Recipe
from instil.tasks import TaskData
from instil.tasks.free_text import FreeText
from instil.tasks.split import Drawn, draw_rows


def draw_for(recipe: Recipe, data: TaskData) -> Drawn:
    """Draws the rows that a recipe asks for, and refuses steps that they do not come to; see `draw_rows`."""
    drawn = draw_rows(
        data,
        seed=recipe.seed,
        training=recipe.training.rows,
        pool=recipe.demonstrations.pool,
        evaluation=recipe.evaluation.rows,
        out_of_domain=recipe.evaluation.rows_out_of_domain,
        validation=recipe.evaluation.validation_rows if recipe.evaluation.at_steps else 0,
    )
    check_checkpoints(recipe, len(drawn.training))
    return drawn


def problems_of_rows(recipes: Iterable[Recipe]) -> list[str]:
    """What is wrong with the rows of tasks whose sets lie in local files, told once; each set is read once."""
    data: dict[str, TaskData] = {}
    found: dict[str, None] = {}
    for recipe in recipes:
        task = recipe.task
        if task is None or not task.local:
            continue
        try:
            name = task.model_dump_json()
            data[name] = data.get(name) or task.read()
            _check_pool(recipe, draw_for(recipe, data[name]))
        except InstilError as error:
            found[str(error)] = None
    return list(found)


def _check_pool(recipe: Recipe, drawn: Drawn) -> None:
    """Refuses more demonstrations than there are rows to draw them from."""
    method = METHODS[recipe.method]
    brought = isinstance(recipe.task, FreeText) and recipe.task.exemplar_count is not None
    if (method.context or method.teacher) and not brought:
        check_pool_size(recipe.demonstrations.k, len(drawn.pool))


def check_checkpoints(recipe: Recipe, rows: int) -> None:
    """Refuses a checkpoint behind the end of training, where only the number of training rows tells when that is.

    Raises:
        ConfigError: names the step and the last one.
    """
    at_steps, learns = recipe.evaluation.at_steps, METHODS[recipe.method].learns
    if learns is None or not isinstance(at_steps, tuple):
        return
    learnt = rows * (recipe.teacher.samples if learns == "targets" else 1)
    last = recipe.training.steps(learnt)
    if max(at_steps) > last:
        raise ConfigError(
            "a student cannot be judged after its training has ended",
            got=f"evaluation.at_steps: {max(at_steps)}, with {last} steps for {learnt} completions",
            allowed=f"steps from 1 to {last}",
            mend="leave it out, or raise training.epochs or training.max_steps",
        )
