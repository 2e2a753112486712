"""Samples demonstrations from a pool of rows with outputs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from instil.errors import ConfigError
from instil.prompts.context import Context
from instil.recipe import sections
from instil.tasks.rows import Row, key


def check_pool_size(k: int, rows: int, *, brought: bool = False) -> None:
    """Checks that the pool has enough rows for k demonstrations.

    Raises:
        ConfigError: k is larger than the number of rows.
    """
    if k > rows:
        raise ConfigError(
            f"demonstrations.k is {k}, but the number of rows for demonstrations is {rows}",
            allowed=f"0 to {rows}",
            mend="lower k; the task itself has these demonstrations"
            if brought
            else "lower k or training.rows, raise demonstrations.pool, or add labelled rows",
        )


@dataclass(frozen=True)
class Demonstrator:
    """Makes the contexts of a task.

    Attributes:
        settings: Number of demonstrations, and how they are sampled.
        pool: Rows that they are sampled from.
        prefix: Text before them; the student reads it too.
        forms: Label -> the surface form that a demonstration shows. Empty for free text: outputs
            are shown unchanged, and there are no labels to balance.
        seed: Seed of the sampling.
        in_order: Whether to use the first rows of the pool instead of sampling.
    """

    settings: sections.Demonstrations
    pool: list[Row]
    prefix: str
    forms: dict[str, str]
    seed: int
    in_order: bool = False

    def contexts(self, number: int, queries: Sequence[Row], name: str) -> list[Context]:
        """One context per query: the same for all, one of a few, or a new sample for each.

        Args:
            number: Number of the context, if several are averaged.
            queries: The queries.
            name: Name of their set; part of the seed when each query has its own context.

        Raises:
            ConfigError: the pool has too few rows for a context.
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
        check_pool_size(k, len(turns), brought=self.in_order)
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
        """Sampled rows; the labels of the first k are as balanced as possible."""
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
