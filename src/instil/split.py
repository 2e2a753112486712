"""Which rows are learnt from and which are judged on: never the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from instil.config import Recipe
from instil.context import Context
from instil.errors import ConfigError, ContextError
from instil.rows import Row, check_overlap, key, read_rows

HELD_OUT_SHARE, HELD_OUT_MOST = 0.2, 100


@dataclass(frozen=True)
class Rows:
    """What a run learns from and what it is judged on."""

    inputs: list[Row]
    evaluation: list[Row]


@dataclass(frozen=True)
class Given:
    """What a run is given to work on.

    Attributes:
        context: What the teacher reads.
        inputs: Queries to learn from.
        held_out: Rows to judge on; None: some of the inputs are held out.
    """

    context: Context
    inputs: list[Row]
    held_out: list[Row] | None

    @classmethod
    def read(cls, recipe: Recipe) -> Given:
        """Reads the files that a recipe names.

        Raises:
            ConfigError: it names no inputs.
            InstilError: a file is at fault.
        """
        if recipe.data.inputs is None:
            raise ConfigError(
                "a recipe without a task needs data.inputs",
                allowed="a .jsonl, .csv or .parquet file with a field `input`",
                mend="name the file, or a task",
            )
        gold = recipe.teacher.completions == "gold"
        return cls(
            context=Context.read(recipe.context),
            inputs=read_rows(recipe.data.inputs, need_output=gold),
            held_out=read_rows(recipe.data.eval, need_output=True) if recipe.data.eval else None,
        )


def split(
    inputs: Sequence[Row],
    held_out: Sequence[Row] | None,
    context: Context,
    *,
    seed: int,
    allow_overlap: bool = False,
) -> Rows:
    """Checks that nothing leaks, and holds rows out of the inputs if no evaluation rows are given.

    Args:
        inputs: Queries to learn from.
        held_out: Rows to judge on, if there are any.
        context: Its demonstrations must not be judged on.
        seed: Of the choice.
        allow_overlap: Let leaks pass.

    Raises:
        OverlapError: an evaluation row is also a demonstration or an input.
        ContextError: there are too few inputs to hold any out.
    """
    inputs = list(inputs)
    if held_out is None:
        shots = {key(row) for row in context.demonstrations}
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
        {"demonstrations": context.demonstrations, "training inputs": inputs},
        allow=allow_overlap,
    )
    return Rows(inputs, list(held_out))
