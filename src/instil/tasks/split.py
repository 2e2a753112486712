"""Which rows are learnt from, which may be demonstrations, and which are judged on: never the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from instil.errors import ConfigError, ContextError
from instil.results.cell import Domain
from instil.tasks import TaskData
from instil.tasks.rows import Row, check_overlap, key

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
    evaluation: int | None,
    out_of_domain: int | None,
    validation: int = 0,
) -> Drawn:
    """Draws the rows of a cell.

    Args:
        data: The task's sets.
        seed: Of the draws.
        training: Inputs to learn from.
        pool: Most rows that demonstrations are drawn from.
        evaluation: Most rows of each set; None: 500.
        out_of_domain: Most rows of each set from elsewhere; None: the same.
        validation: Rows of the training set that a student is judged on while it learns.

    Raises:
        ConfigError: there are fewer training rows than asked for, or none are left for the pool.
    """
    named: dict[Domain, dict[str, list[Row]]] = {"in": data.in_domain, "out": data.out_of_domain}
    rows_in = evaluation or EVALUATION_ROWS
    most: dict[Domain, int] = {"in": rows_in, "out": out_of_domain or rows_in}
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


def _sample(rows: list[Row], most: int, seed: str) -> list[Row]:
    return random.Random(seed).sample(rows, min(most, len(rows)))


HELD_OUT_SHARE, HELD_OUT_MOST = 0.2, 100


@dataclass(frozen=True)
class Rows:
    """What a run learns from and what it is judged on."""

    inputs: list[Row]
    evaluation: list[Row]


def split(
    inputs: Sequence[Row],
    held_out: Sequence[Row] | None,
    demonstrations: Sequence[Row],
    *,
    seed: int,
    allow_overlap: bool = False,
) -> Rows:
    """Checks that nothing leaks, and holds rows out of the inputs if no evaluation rows are given.

    Args:
        inputs: Queries to learn from.
        held_out: Rows to judge on, if there are any.
        demonstrations: Must not be judged on.
        seed: Of the choice.
        allow_overlap: Let leaks pass.

    Raises:
        OverlapError: an evaluation row is also a demonstration or an input.
        ContextError: there are too few inputs to hold any out.
    """
    inputs = list(inputs)
    if held_out is None:
        shots = {key(row) for row in demonstrations}
        keys = sorted({key(row) for row in inputs} - shots)
        if len(keys) < 2:
            raise ContextError(
                f"{len(keys)} different input(s), and no evaluation rows",
                allowed="at least 2 different inputs, so that some can be held out",
                mend="pass more inputs, or --eval",
            )
        count = min(HELD_OUT_MOST, max(1, int(HELD_OUT_SHARE * len(keys))))
        chosen = set(random.Random(seed).sample(keys, count))
        held_out = [row for row in inputs if key(row) in chosen]
        inputs = [row for row in inputs if key(row) not in chosen]
    check_overlap(
        held_out,
        {"demonstrations": demonstrations, "training inputs": inputs},
        allow=allow_overlap,
    )
    return Rows(inputs, list(held_out))
