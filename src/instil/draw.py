"""Which rows of a task are learnt from, which may be demonstrations, which are judged on; and the drawing of contexts.

Every draw has its own seeded generator, named by what it draws. So the evaluation rows of a seed are the same for every
method, and more training rows never change the rows that were there before.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from instil import config
from instil.cell import Domain
from instil.context import Context
from instil.errors import ConfigError, InstilError
from instil.method import METHODS
from instil.rows import Row, key
from instil.steps import check_checkpoints
from instil.task import TaskData
from instil.task.writing import WritingTask

TRAINING_ROWS, EVALUATION_ROWS = 400, 500  # where a recipe does not say


@dataclass(frozen=True)
class EvaluationSet:
    """Rows that a method is judged on.

    Attributes:
        name: Of the set.
        domain: Whether it is where the training rows come from.
        rows: Their inputs with gold outputs.
    """

    name: str
    domain: Domain
    rows: list[Row]


@dataclass(frozen=True)
class Drawn:
    """All rows of one cell.

    Attributes:
        training: Inputs to learn from, with gold outputs.
        pool: Rows that demonstrations are drawn from; none of the training rows.
        validation: Rows that a student is judged on while it learns; of neither.
        sets: What is judged on.
        left_out: Training rows that were dropped because they are also evaluation rows.
    """

    training: list[Row]
    pool: list[Row]
    validation: list[Row]
    sets: list[EvaluationSet]
    left_out: int


def draw_rows(
    data: TaskData,
    *,
    seed: int,
    training: int | None,
    pool: int,
    evaluation: config.Evaluation,
    validation: int = 0,
) -> Drawn:
    """Draws the rows of a cell.

    Args:
        data: The task's sets.
        seed: Of the draws.
        training: Inputs to learn from.
        pool: Most rows that demonstrations are drawn from.
        evaluation: Most rows of each set.
        validation: Rows of the training set that a student is judged on while it learns.

    Raises:
        ConfigError: there are fewer training rows than asked for, or none are left for the pool.
    """
    named: dict[Domain, dict[str, list[Row]]] = {"in": data.in_domain, "out": data.out_of_domain}
    rows_in = evaluation.rows or EVALUATION_ROWS
    most: dict[Domain, int] = {"in": rows_in, "out": evaluation.rows_out_of_domain or rows_in}
    sets = [
        EvaluationSet(name, domain, _sample(rows, most[domain], f"{seed} {name}"))
        for domain, known in named.items()
        for name, rows in known.items()
    ]
    judged = {key(row) for one in sets for row in one.rows}
    shuffled = random.Random(f"{seed} training").sample(data.train, len(data.train))
    order = [row for row in shuffled if key(row) not in judged]  # the others stay as they were
    left_out = len(data.train) - len(order)
    if data.inputs is not None:
        others = order[::-1][:pool]
        return _with_inputs(
            data.inputs, others, sets, judged, seed=seed, training=training, left_out=left_out
        )
    if len(order) < 2:
        raise ConfigError(
            f"the training set has {len(order)} rows left to learn from",
            got=f"{left_out} of its {len(data.train)} rows are evaluation rows, too",
            allowed="at least 2, so that demonstrations can be drawn from the others",
            mend="use other files for training and evaluation, or lower evaluation.rows",
        )
    count = training or min(TRAINING_ROWS, len(order) // 2)
    learnt = {key(row) for row in order[:count]}
    if count >= len(order):
        raise ConfigError(
            f"training.rows: {count} asked for, and the training set has {len(order)}",
            allowed=f"1 to {len(order) - 1}, so that demonstrations can be drawn from the others",
            mend="lower training.rows",
        )
    # From the other end, so that more training rows leave the demonstrations as they were.
    others = [row for row in reversed(order[count:]) if key(row) not in learnt]
    if validation and validation >= len(others):
        raise ConfigError(
            f"evaluation.validation_rows: {validation} asked for, and {len(others)} rows are left",
            allowed=f"1 to {len(others) - 1}, so that demonstrations can be drawn from the others",
            mend="lower it, or training.rows",
        )
    return Drawn(
        training=order[:count],
        # Before the last of what is left to draw demonstrations from.
        pool=others[: min(pool, len(others) - validation)],
        validation=others[len(others) - validation :],
        sets=sets,
        left_out=left_out,
    )


def _with_inputs(
    inputs: Sequence[Row],
    pool: list[Row],
    sets: list[EvaluationSet],
    judged: set[str],
    *,
    seed: int,
    training: int | None,
    left_out: int,
) -> Drawn:
    """The rows of a cell that learns from inputs of their own: demonstrations are drawn from what is labelled.

    Raises:
        ConfigError: there are fewer inputs than asked for.
    """
    known = judged | {key(row) for row in pool}
    shuffled = random.Random(f"{seed} inputs").sample(inputs, len(inputs))
    unseen = [row for row in shuffled if key(row) not in known]
    count = training or min(TRAINING_ROWS, len(unseen))
    if not 0 < count <= len(unseen):
        raise ConfigError(
            f"training.rows: {training or 1} asked for, and {len(unseen)} unlabelled rows are left",
            got=f"{len(inputs) - len(unseen)} of {len(inputs)} are evaluation rows or demonstrations, too",
            mend="lower training.rows, or add rows",
        )
    left_out += sum(key(row) in judged for row in inputs)
    return Drawn(unseen[:count], pool, [], sets, left_out)


def draw_for(recipe: config.Recipe, data: TaskData) -> Drawn:
    """Draws the rows that a recipe asks for, and refuses steps that they do not come to; see `draw_rows`."""
    drawn = draw_rows(
        data,
        seed=recipe.seed,
        training=recipe.training.rows,
        pool=recipe.demonstrations.pool,
        evaluation=recipe.evaluation,
        validation=recipe.evaluation.validation_rows if recipe.evaluation.at_steps else 0,
    )
    check_checkpoints(recipe, len(drawn.training))
    return drawn


def problems_of_rows(recipes: Iterable[config.Recipe]) -> list[str]:
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


def _check_pool(recipe: config.Recipe, drawn: Drawn) -> None:
    """Refuses more demonstrations than there are rows to draw them from."""
    method = METHODS[recipe.method]
    brought = isinstance(recipe.task, WritingTask) and recipe.task.exemplar_count is not None
    if (method.context or method.teacher) and not brought:
        _enough(recipe.demonstrations.k, len(drawn.pool))


def _enough(k: int, rows: int, *, brought: bool = False) -> None:
    if k > rows:
        raise ConfigError(
            f"demonstrations.k: {k} asked for, and the pool has {rows} rows",
            allowed=f"0 to {rows}",
            mend="lower k: the task brings these demonstrations itself"
            if brought
            else "lower k or training.rows, raise demonstrations.pool, or add labelled rows that are not judged on",
        )


@dataclass(frozen=True)
class Demonstrator:
    """Draws the contexts of a task.

    Attributes:
        settings: How many demonstrations, and how they are drawn.
        pool: What they are drawn from.
        prefix: Text before them; the student reads it, too.
        forms: Label -> the surface form that a demonstration shows. Empty where outputs are shown as they are, and
            there is nothing to balance.
        seed: Of the draws.
        in_order: Whether the pool's first rows are taken, not drawn.
    """

    settings: config.Demonstrations
    pool: list[Row]
    prefix: str
    forms: dict[str, str]
    seed: int
    in_order: bool = False

    def contexts(self, number: int, queries: Sequence[Row], name: str) -> list[Context]:
        """One context for each query: the same for all, one of a few, or drawn anew for each.

        Args:
            number: Which of several contexts.
            queries: The rows that will be asked about.
            name: Of their set; part of a per-query draw's seed.

        Raises:
            ConfigError: the pool has fewer rows than a context needs.
        """
        if self.settings.draw == "fixed":
            return [self._context(f"{self.seed} context {number}", None)] * len(queries)
        if few := self.settings.contexts:
            seeds = [f"{self.seed} context {number} of few {place}" for place in range(few)]
            drawn = [self._context(seed, None) for seed in seeds]
            return [drawn[place % few] for place in range(len(queries))]
        return [
            self._context(f"{self.seed} context {number} {name} {place}", query)
            for place, query in enumerate(queries)
        ]

    def _context(self, seed: str, query: Row | None) -> Context:
        rng, k = random.Random(seed), self.settings.k
        turns = self.pool if self.in_order else self._turns(rng, query)
        _enough(k, len(turns), brought=self.in_order)
        rows = turns[:k] if self.in_order else rng.sample(turns[:k], k)
        outputs = [row.output or "" for row in rows]
        if self.settings.answers == "shuffled":
            outputs = rng.sample(outputs, k)
        shots = [
            Row(row.input, self.forms[output] if self.forms else output)
            for row, output in zip(rows, outputs, strict=True)
        ]
        return Context(instruction=self.prefix or None, demonstrations=tuple(shots))

    def _turns(self, rng: random.Random, query: Row | None) -> list[Row]:
        """Drawn rows, of which the first k hold as many of each label as can be."""
        k, balanced = self.settings.k, self.settings.balanced and self.forms
        buckets = list(self._by_label.values()) if balanced else [self.pool]
        if query is not None and key(query) in self._keys:
            buckets = [[row for row in rows if key(row) != key(query)] for rows in buckets]
        drawn = [
            rng.sample(bucket, min(k, len(bucket))) for bucket in rng.sample(buckets, len(buckets))
        ]
        return [row for turn in zip_longest(*drawn) for row in turn if row is not None]

    @cached_property
    def _by_label(self) -> dict[str, list[Row]]:
        return {label: [row for row in self.pool if row.output == label] for label in self.forms}

    @cached_property
    def _keys(self) -> set[str]:
        return {key(row) for row in self.pool}


def _sample(rows: list[Row], most: int, seed: str) -> list[Row]:
    return random.Random(seed).sample(rows, min(most, len(rows)))
