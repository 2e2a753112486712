"""Draws contexts from a pool of solved rows."""

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
    """Refuses more demonstrations than there are rows to draw them from.

    Raises:
        ConfigError: with both numbers.
    """
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

    settings: sections.Demonstrations
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
