"""Splits rows into training rows, demonstrations and evaluation rows, which never overlap."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from instil.errors import ConfigError, ContextError
from instil.results.scores import Domain
from instil.tasks.base import TaskData
from instil.tasks.files import ROWS
from instil.tasks.rows import Row, check_overlap, group, grouped, key

TRAINING_ROWS, EVALUATION_ROWS = 400, 500  # if a recipe sets no number
HELD_OUT_SHARE, HELD_OUT_MOST = 0.2, 100
WATCHED_SHARE, WATCHED_LEAST, WATCHED_MOST = 0.1, 20, 50


@dataclass(frozen=True)
class EvaluationSet:
    """Rows that a method is evaluated on.

    Attributes:
        name: Name of the set.
        domain: `in` if the rows have the same source as the training rows, else `out`.
        rows: Inputs with gold outputs.
    """

    name: str
    domain: Domain
    rows: list[Row]


@dataclass(frozen=True)
class Drawn:
    """All rows of one cell.

    Attributes:
        training: Inputs to learn from, with gold outputs.
        pool: Rows that demonstrations are sampled from; none of them is a training row.
        validation: Rows that a student is evaluated on during training; none of them is in
            `training` or `pool`.
        sets: Evaluation sets.
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
    """Samples the rows of a cell.

    Args:
        data: The task's sets.
        seed: Seed of the sampling.
        training: Number of inputs to learn from.
        pool: Maximum number of rows that demonstrations are sampled from.
        evaluation: Maximum number of rows per set; None for 500.
        out_of_domain: Maximum number of rows per out-of-domain set; None for the same.
        validation: Number of rows of the training set that a student is evaluated on during
            training.

    Raises:
        ConfigError: there are fewer training rows than requested, or none are left for the pool.
    """
    named: dict[Domain, dict[str, list[Row]]] = {"in": data.in_domain, "out": data.out_of_domain}
    rows_in = evaluation or EVALUATION_ROWS
    most: dict[Domain, int] = {"in": rows_in, "out": out_of_domain or rows_in}
    sets = [
        EvaluationSet(name, domain, _sample(rows, most[domain], f"{seed} {name}"))
        for domain, known in named.items()
        for name, rows in known.items()
    ]
    judged = {key(row) for evaluation_set in sets for row in evaluation_set.rows}
    shuffled = random.Random(f"{seed} training").sample(data.train, len(data.train))
    order = [
        row for row in shuffled if key(row) not in judged
    ]  # the order of the others does not change
    left_out = len(data.train) - len(order)
    if data.inputs is not None:
        others = order[::-1][:pool]
        return _with_inputs(
            data.inputs, others, sets, judged, seed=seed, training=training, left_out=left_out
        )
    if len(order) < 2:
        raise ConfigError(
            f"the training set has only {len(order)} rows left to learn from",
            got=f"{left_out} of its {len(data.train)} rows are also evaluation rows",
            allowed="at least 2, so that one is left for demonstrations",
            mend="use other files for training and evaluation, or lower evaluation.rows",
        )
    count = training or min(TRAINING_ROWS, len(order) // 2)
    learnt = {key(row) for row in order[:count]}
    if count >= len(order):
        raise ConfigError(
            f"training.rows is {count}, but the training set has {len(order)} rows",
            allowed=f"1 to {len(order) - 1}, so that one is left for demonstrations",
            mend="lower training.rows",
        )
    # From the other end, so that the demonstrations do not change with the number of training rows.
    others = [row for row in reversed(order[count:]) if key(row) not in learnt]
    if validation and validation >= len(others):
        raise ConfigError(
            f"evaluation.validation_rows is {validation}, but {len(others)} rows are left",
            allowed=f"1 to {len(others) - 1}, so that one is left for demonstrations",
            mend="lower evaluation.validation_rows or training.rows",
        )
    return Drawn(
        training=order[:count],
        # The last rows are for validation, so demonstrations come from the rows before them.
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
    """The rows of a cell that learns from unlabelled inputs; demonstrations are labelled rows.

    Raises:
        ConfigError: there are fewer inputs than requested.
    """
    known = judged | {key(row) for row in pool}
    shuffled = random.Random(f"{seed} inputs").sample(inputs, len(inputs))
    unseen = [row for row in shuffled if key(row) not in known]
    count = training or min(TRAINING_ROWS, len(unseen))
    if not 0 < count <= len(unseen):
        raise ConfigError(
            f"training.rows is {training or 1}, but {len(unseen)} unlabelled rows are left",
            got=f"{len(inputs) - len(unseen)} of {len(inputs)} are also evaluation rows or demonstrations",
            mend="lower training.rows, or add rows",
        )
    left_out += sum(key(row) in judged for row in inputs)
    return Drawn(unseen[:count], pool, [], sets, left_out)


def _sample(rows: list[Row], most: int, seed: str) -> list[Row]:
    return random.Random(seed).sample(rows, min(most, len(rows)))


@dataclass(frozen=True)
class Rows:
    """Inputs to learn from, and the evaluation sets."""

    inputs: list[Row]
    sets: list[EvaluationSet]


def split(
    inputs: Sequence[Row],
    held_out: Mapping[str, Sequence[Row]] | None,
    demonstrations: Sequence[Row],
    *,
    seed: int,
    allow_overlap: bool = False,
) -> Rows:
    """Checks that rows do not overlap; holds out some inputs if no evaluation rows are given.

    Args:
        inputs: Queries to learn from.
        held_out: Name -> evaluation rows; None to hold out some of the inputs.
        demonstrations: Rows that must not be evaluation rows.
        seed: Seed of the choice of held-out inputs.
        allow_overlap: Skip the check for overlaps.

    Raises:
        OverlapError: an evaluation row is also a demonstration or an input.
        ContextError: there are too few inputs to hold any out.
    """
    learnt = list(inputs)
    if held_out is None:
        shots, groups = {group(row) for row in demonstrations}, grouped(learnt)
        shown = {
            of for of, row in zip(groups, learnt, strict=True) if shots and group(row) in shots
        }
        keys = sorted({*groups} - shown)
        if len(keys) < 2:
            raise ContextError(
                f"there are no evaluation rows and only {len(keys)} different inputs",
                allowed="at least 2 different inputs, so that one can be held out",
                mend="pass more inputs, or --eval",
            )
        count = min(HELD_OUT_MOST, max(1, int(HELD_OUT_SHARE * len(keys))))
        turns = Counter(of for of, row in zip(groups, learnt, strict=True) if row.turn)
        chosen = _few(random.Random(seed).sample(keys, count), turns)
        learnt, judged = _parted(learnt, groups, chosen)
        held_out = {ROWS: judged}
    for rows in held_out.values():
        check_overlap(
            rows,
            {"demonstrations": demonstrations, "training inputs": learnt},
            allow=allow_overlap,
        )
    return Rows(learnt, [EvaluationSet(name, "in", list(rows)) for name, rows in held_out.items()])


def _few(keys: Sequence[int], turns: Mapping[int, int]) -> set[int]:
    """The first groups whose conversations have as many turns as rows may be held out.

    Args:
        keys: Numbers of the groups.
        turns: The number of turns of a group, if it is a conversation.
    """
    chosen: set[int] = set()
    count = 0
    for one in keys:
        more = max(1, turns.get(one, 0))
        if chosen and count + more > HELD_OUT_MOST:
            break
        chosen.add(one)
        count += more
    return chosen


def _parted(
    rows: Sequence[Row], groups: Sequence[int], chosen: Collection[int]
) -> tuple[list[Row], list[Row]]:
    """The rows that are in none of some groups, and those that are in one of them."""
    pairs = list(zip(rows, groups, strict=True))
    left = [row for row, of in pairs if of not in chosen]
    return left, [row for row, of in pairs if of in chosen]


def held_out_rows(inputs: Sequence[Row], count: int, *, seed: str) -> tuple[list[Row], list[Row]]:
    """Holds out some inputs; equal inputs stay together.

    Returns:
        The inputs that are left, and the inputs that are held out.

    Raises:
        ConfigError: no input would be left.
    """
    if not count:
        return list(inputs), []
    groups = grouped(inputs)
    keys = range(len({*groups}))
    if count >= len(keys):
        raise ConfigError(
            f"evaluation.validation_rows is {count}, but there are {len(keys)} different inputs",
            allowed=f"1 to {len(keys) - 1}, so that some are left to learn from",
            mend="lower evaluation.validation_rows, or add inputs",
        )
    chosen = set(random.Random(seed).sample(keys, count))
    return _parted(inputs, groups, chosen)


def watched_rows(rows: Sequence[Row], *, seed: str) -> set[int]:
    """Chooses rows on which the loss is measured during training; equal inputs stay together.

    Args:
        rows: The training rows.
        seed: Seed of the choice.

    Returns:
        Their indices: a tenth of the different inputs, at most 50; none of fewer than 20.
    """
    groups = grouped(rows)
    keys = range(len({*groups}))
    if len(keys) < WATCHED_LEAST:
        return set()
    count = min(WATCHED_MOST, round(WATCHED_SHARE * len(keys)))
    chosen = set(random.Random(seed).sample(keys, count))
    return {number for number, of in enumerate(groups) if of in chosen}
