"""What metrics and rules say of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from instil.metrics import Metric
from instil.metrics.rules import Asked, Rule
from instil.results.schema import EvaluationRow
from instil.results.scores import Proportion
from instil.results.statistics import mean_value, proportion
from instil.tasks.rows import Row, answer_number


@dataclass(frozen=True)
class Verdicts:
    """What metrics and rules say of the answers to some rows.

    Attributes:
        right: Whether each answer is right; None without a gold output, and if the first metric
            gives a number.
        values: Metric -> value of each answer; empty without a gold output.
        rules: Rule that applies -> whether each answer obeys it.
    """

    right: list[bool | None]
    values: list[dict[str, float]]
    rules: list[dict[str, bool]]

    @property
    def leading(self) -> Proportion | None:
        """The mean of the first metric; None if no row has a gold output."""
        for value in means(self.values).values():
            return value
        known = [right for right in self.right if right is not None]
        return proportion(known) if known else None


def verdicts(
    texts: Sequence[str],
    golds: Sequence[str | None],
    asked: Sequence[Asked],
    *,
    metrics: Sequence[Metric],
    rules: Sequence[Rule],
    right: Callable[[str, str], bool],
    name: str,
) -> Verdicts:
    """Judges answers.

    Args:
        texts: The answers.
        golds: The gold output of each row; None if it has none.
        asked: What was asked.
        metrics: How answers are compared with gold outputs. The first one decides which are right.
        rules: What answers must obey.
        right: Decides which answers are right if there are no metrics.
        name: Name for a row in error messages.

    Raises:
        ConfigError: a metric fails. The message has the row.
    """
    made = Verdicts([], [], [])
    for number, (text, gold, query) in enumerate(zip(texts, golds, asked, strict=True), 1):
        where, values = f"{name} {number}", dict[str, float]()
        verdict: bool | None = None
        if gold is not None:
            values = {one.name: one.value(text, gold, where=where) for one in metrics}
            lead = next(iter(values.values())) if values else right(text, gold)
            verdict = lead if isinstance(lead, bool) else None
        kept = {rule.name: rule.kept(text, query, where=where) for rule in rules}
        made.values.append(values)
        made.right.append(verdict)
        made.rules.append({rule: obeyed for rule, obeyed in kept.items() if obeyed is not None})
    return made


def means(values: Sequence[Mapping[str, float]]) -> dict[str, Proportion]:
    """The mean of each name over the rows that have it."""
    names = dict.fromkeys(name for row in values for name in row)
    return {name: mean_value([row[name] for row in values if name in row]) for name in names}


def asked_of(row: Row | EvaluationRow) -> Asked:
    """What was asked before the answer of a row."""
    if isinstance(row, EvaluationRow):
        said = [message.content for message in row.messages]
        number = row.turn
    else:
        said = [message.content for message in row.turn.before] if row.turn else []
        number = answer_number(row)
    return Asked(row.input, "\n\n".join(said) or row.input, number or 1)
