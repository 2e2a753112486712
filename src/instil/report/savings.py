"""When a student pays: against reading the context each time, and against a warm prefix cache."""

from __future__ import annotations

from dataclasses import dataclass

from instil.report.numerals import NBSP, count, duration, fixed, number
from instil.report.tables import Table, TableCell, TableRow
from instil.results.schema import SPENT, Results, break_even

DAYS = 30
EDITS = (0, 1, 4, 20)
"""Edits of the prompt in a month; each needs a new student."""
QUERIES = (100, 1_000, 10_000, 100_000)
"""Queries in a day."""


@dataclass(frozen=True)
class Savings:
    """What a student saves beside a server that keeps the context's keys and values.

    Attributes:
        sentences: In words.
        table: Hours saved in a month; None if a query saves no time.
    """

    sentences: list[str]
    table: Table | None


def savings(results: Results) -> Savings | None:
    """The savings of a single run; None without a student, or if they were not measured."""
    before, after = results.result("in_context"), results.methods[0]
    if results.training is None or before is None or after is before:
        return None
    sentences, table = list[str](), None
    warm, own = before.seconds_warm, after.seconds_per_query
    spent = sum(results.phases[name].wall_seconds for name in SPENT if name in results.phases)
    if warm is not None and own is not None:
        saved = warm - own
        sentences.append(
            "A server with a prefix cache reads the context once, and then only the query: in-context "
            f"then takes {number(warm)}{NBSP}s on this machine, and the student {number(own)}{NBSP}s."
        )
        needed = break_even(spent, saved)
        if needed is None:
            sentences.append(
                "So beside a warm cache the student saves no time here. It still needs no room for "
                "the context’s keys and values, and nothing has to be kept warm."
            )
        else:
            sentences.append(
                f"Beside a warm cache, the {duration(spent)} of generating, teaching and training are "
                f"paid back after {count(needed, 'query', 'queries')}."
            )
            table = _table(saved, spent)
    sentences += _prices(results)
    return Savings(sentences, table) if sentences else None


def _table(saved: float, spent: float) -> Table:
    lines = []
    for edits in EDITS:
        cells = []
        for queries in QUERIES:
            hours = (DAYS * queries * saved - max(1, edits) * spent) / 3600
            cells.append(TableCell(f"{hours:+,.1f}".replace("-", "\N{MINUS SIGN}"), hours))
        name = "never" if edits == 0 else f"{count(edits, 'time')} a month"
        lines.append(TableRow(name, "", tuple(cells)))
    return Table(
        "Hours saved in a month beside a warm prefix cache",
        "The prompt is edited",
        tuple(f"{queries:,} queries a day" for queries in QUERIES),
        tuple(lines),
    )


def _prices(results: Results) -> list[str]:
    """What 1,000 queries cost, if prices are given."""
    prices = results.recipe.get("evaluation", {}).get("prices")
    before, after = results.result("in_context"), results.methods[0]
    if not prices or before is None:
        return []
    shared = max(0.0, before.prompt_tokens_mean - after.prompt_tokens_mean)

    def cost(prompt: float, cached: float, found: float) -> str:
        total = (
            prompt * prices["input"] + cached * prices["cached_input"] + found * prices["output"]
        )
        return fixed(total / 1000, 4)  # 1,000 queries, and prices of a million tokens

    answers = [
        one.scores[0].written.ends.tokens_mean if one.scores[0].written else 0.0
        for one in (before, after)
    ]
    own = after.prompt_tokens_mean
    return [
        "At the given prices, 1,000 queries cost "
        f"{cost(before.prompt_tokens_mean, 0, answers[0])} in-context, "
        f"{cost(before.prompt_tokens_mean - shared, shared, answers[0])} in-context with the context "
        f"cached, and {cost(own, 0, answers[1])} with the student, at the same price a token."
    ]
