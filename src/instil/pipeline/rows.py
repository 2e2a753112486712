"""Reads, draws and checks the rows of a recipe, and gives each query its context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from instil.errors import ConfigError, FieldError, InstilError
from instil.methods import METHODS
from instil.metrics import Metric, comparing
from instil.pipeline.given import Given, RowContexts, needs_gold, own_prompt
from instil.prompts.context import Context
from instil.prompts.demonstrations import Demonstrator, check_pool_size
from instil.recipe.canonical import reads_context
from instil.recipe.recipe import Recipe
from instil.tasks import TaskData
from instil.tasks.base import PatternTask
from instil.tasks.classification import ClassificationTask
from instil.tasks.files import Files
from instil.tasks.free_text import QuestionTask
from instil.tasks.kept_texts import read_kept
from instil.tasks.rows import Row
from instil.tasks.split import Drawn, draw_rows, held_out_rows, split


class Contexts(Protocol):
    """Gives each query its context."""

    def contexts(self, number: int, queries: Sequence[Row], name: str) -> list[Context]:
        """Returns one context per query.

        Args:
            number: Number of the context, from 0, if a query is read under several contexts.
            queries: Rows with the queries.
            name: Name of their set.
        """


@dataclass(frozen=True)
class CellRows:
    """The rows of a cell and their contexts.

    Attributes:
        drawn: The rows.
        contexts: Gives each query its context.
        alone: What the student reads, too: the prefix of the task, or its own system prompt.
        context: Context of all rows, for the task `files`; else None.
        given: What was found in the files, for the task `files`; else None.
    """

    drawn: Drawn
    contexts: Contexts
    alone: Context
    context: Context | None = None
    given: Given | None = None

    @classmethod
    def of(cls, recipe: Recipe, given: Given | None = None) -> CellRows:
        """Reads and draws the rows of a recipe.

        Args:
            recipe: Recipe that names the task.
            given: Rows and context. They replace the files that the task `files` names.

        Raises:
            InstilError: a file is wrong, or there are fewer rows than the recipe asks for.
        """
        task = recipe.task
        if isinstance(task, Files):
            given = given or Given.read(recipe, task)
            drawn = draw_for(recipe, given)
            contexts = RowContexts(given.context, task.context_from_logs)
            return cls(drawn, contexts, own_prompt(task), given.context, given)
        assert isinstance(task, PatternTask)
        drawn = draw_for(recipe, task.read())
        shown = task.exemplars() if isinstance(task, QuestionTask) else []
        forms: dict[str, str] = {}
        if isinstance(task, ClassificationTask):
            forms = {label: words[0] for label, words in task.verbalizer.items()}
        demonstrator = Demonstrator(
            settings=recipe.demonstrations,
            pool=shown or drawn.pool,
            prefix=task.prefix,
            forms=forms,
            seed=recipe.seed,
            in_order=bool(shown),
        )
        return cls(drawn, demonstrator, Context(instruction=task.prefix or None))


def draw_for(recipe: Recipe, data: TaskData | Given) -> Drawn:
    """Draws the rows that a recipe asks for; see `draw_rows` and `split`.

    Raises:
        ConfigError: there are too few rows, or `evaluation.at_steps` names a step after the end
            of training.
    """
    validation = recipe.evaluation.validation_rows if recipe.evaluation.at_steps else 0
    if isinstance(data, Given):
        assert isinstance(recipe.task, Files)
        drawn = _split(recipe, recipe.task, data, validation)
    else:
        drawn = draw_rows(
            data,
            seed=recipe.seed,
            training=recipe.training.rows,
            pool=recipe.demonstrations.pool,
            evaluation=recipe.evaluation.rows,
            out_of_domain=recipe.evaluation.rows_out_of_domain,
            validation=validation,
        )
    units = {row.conversation or id(row) for row in drawn.training}
    check_checkpoints(recipe, len(units))
    return drawn


def _split(recipe: Recipe, task: Files, given: Given, validation: int) -> Drawn:
    rows = split(
        given.inputs,
        given.held_out,
        given.context.demonstrations,
        seed=recipe.seed,
        allow_overlap=task.allow_overlap,
    )
    recipe.evaluation.ruled()  # a wrong rule is an error before anything else is done
    for judged in rows.sets:
        check_gold([*map(comparing, recipe.evaluation.metrics)], judged.name, judged.rows)
    inputs, watched = held_out_rows(rows.inputs, validation, seed=f"{recipe.seed} validation")
    return Drawn(training=inputs, pool=[], validation=watched, sets=rows.sets, left_out=0)


def check_gold(metrics: Sequence[Metric], name: str, rows: Sequence[Row]) -> None:
    """Checks that an answer to each evaluation row can be right: its gold output is.

    Args:
        metrics: How answers are compared.
        name: Name of the set, for the error message.
        rows: Its rows.

    Raises:
        FieldError: a metric says that a gold output is wrong, such as `number` for a text without
            a number.
    """
    for metric in metrics:
        for number, row in enumerate(rows, start=1):
            where = f"{name}, row {number}"
            if not metric.of_itself or row.output is None:
                continue
            if metric.value(row.output, row.output, where=where) == 0:
                raise FieldError(
                    f"{where}: no answer can be right by the metric {metric.name!r}, "
                    "not even the output of the row",
                    got=repr(row.output[-80:]),
                    mend="correct or delete the row, or use another metric",
                )


def problems_of_rows(recipes: Iterable[Recipe]) -> list[str]:
    """Returns the problems of rows in local files, each problem once. Each set is read once."""
    data: dict[tuple[object, ...], TaskData | Given] = {}
    found: dict[str, None] = {}
    for recipe in recipes:
        task = recipe.task
        try:
            if isinstance(recipe.keep.source, Path):
                read_kept(recipe.keep.source)
        except InstilError as error:
            found[str(error)] = None
        if not task.local:
            continue
        own = isinstance(task, Files)
        key = (repr(task), own and needs_gold(recipe), own and reads_context(recipe))
        try:
            if key not in data:
                data[key] = Given.read(recipe, task) if isinstance(task, Files) else task.read()
            drawn = draw_for(recipe, data[key])
            if not own:
                _check_pool(recipe, drawn)
        except InstilError as error:
            found[str(error)] = None
    return list(found)


def _check_pool(recipe: Recipe, drawn: Drawn) -> None:
    """Refuses to draw more demonstrations than there are rows in the pool."""
    task = recipe.task
    fixed = isinstance(task, QuestionTask) and task.exemplar_count is not None
    if reads_context(recipe) and not fixed:
        check_pool_size(recipe.demonstrations.k, len(drawn.pool))


def check_checkpoints(recipe: Recipe, rows: int) -> None:
    """Refuses evaluations after the end of training, which depends on the number of rows.

    Args:
        recipe: All settings.
        rows: Number of training rows.

    Raises:
        ConfigError: `evaluation.at_steps` names a step after the last one.
    """
    at_steps, learns = recipe.evaluation.at_steps, METHODS[recipe.method].learns
    if learns is None or not isinstance(at_steps, tuple):
        return
    completions = rows * (recipe.teacher.samples if learns == "targets" else 1)
    last = recipe.training.steps(completions)
    if max(at_steps) > last:
        raise ConfigError(
            "evaluation.at_steps: this step is after the end of training",
            got=f"step {max(at_steps)}; training has {last} steps for {completions} completions",
            allowed=f"steps from 1 to {last}",
            mend="leave out this step, or raise training.epochs or training.max_steps",
        )
