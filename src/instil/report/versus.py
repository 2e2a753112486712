"""Two runs beside each other, such as those of an old and a new prompt: what got better, and worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instil.errors import ConfigError
from instil.results.schema import EvaluationRow, Prediction, Results
from instil.results.statistics import mcnemar


@dataclass(frozen=True)
class Change:
    """A number of both runs.

    Attributes:
        name: What it is.
        before: Its value in the first run; None if it has none.
        after: Its value in the second run.
        better: Whether a higher number is better (1), a lower one (-1), or neither (0).
        p: p value of a paired test over rows; None if there is none.
    """

    name: str
    before: float | None
    after: float | None
    better: int
    p: float | None = None


@dataclass(frozen=True)
class RowChange:
    """A row that the students of both runs answered, and what got better or worse.

    Attributes:
        set: Its set.
        input: Its input.
        before: The first student's answer.
        after: The second student's answer.
        better: What got better: rules, or `right`.
        worse: What got worse.
    """

    set: str
    input: str
    before: str
    after: str
    better: list[str]
    worse: list[str]


@dataclass(frozen=True)
class Versus:
    """Two runs beside each other.

    Attributes:
        changes: Numbers of both runs.
        rows: Rows on which something got better or worse; those that got worse come first.
        shared: Number of rows that both students answered.
        same: Number of them with the same answer.
    """

    changes: list[Change]
    rows: list[RowChange]
    shared: int
    same: int


@dataclass(frozen=True)
class Finished:
    """A finished run: its results, its rows and its answers."""

    results: Results
    rows: Sequence[EvaluationRow]
    predictions: Sequence[Prediction]

    def answers(self) -> dict[tuple[object, ...], tuple[EvaluationRow, Prediction]]:
        """The student's answers by what was asked; the same question twice counts twice."""
        rows = {(row.set, row.row): row for row in self.rows}
        found: dict[tuple[object, ...], tuple[EvaluationRow, Prediction]] = {}
        seen: dict[tuple[object, ...], int] = {}
        for line in self.predictions:
            if line.method != self.results.method or (line.set, line.row) not in rows:
                continue
            row = rows[line.set, line.row]
            said = tuple((one.role, one.content) for one in row.messages)
            asked = (row.set, row.input, said)
            seen[asked] = seen.get(asked, 0) + 1
            found[*asked, seen[asked]] = row, line
        return found


def versus(one: Finished, other: Finished) -> Versus:
    """Compares the students of two runs on the rows that both answered.

    Raises:
        ConfigError: they share no row.
    """
    before, after = one.answers(), other.answers()
    shared = [key for key in before if key in after]
    if not shared:
        raise ConfigError(
            "the two runs share no evaluation row",
            mend="judge both on the same rows: instil check RUN --eval FILE",
        )
    pairs = [(before[key][1], after[key][1]) for key in shared]
    rows = []
    for key, (first, second) in zip(shared, pairs, strict=True):
        better, worse = _moves(first, second)
        if better or worse:
            row = before[key][0]
            rows.append(
                RowChange(row.set, row.input, first.text or "", second.text or "", better, worse)
            )
    rows.sort(key=lambda row: (-len(row.worse), len(row.better)))
    same = sum(first.text == second.text for first, second in pairs)
    return Versus(_changes(one.results, other.results, pairs), rows, len(shared), same)


def _moves(before: Prediction, after: Prediction) -> tuple[list[str], list[str]]:
    """What got better, and what got worse."""
    moved: tuple[list[str], list[str]] = [], []
    for name in before.rules.keys() & after.rules.keys():
        if before.rules[name] != after.rules[name]:
            moved[before.rules[name]].append(name)
    if before.correct is not None and after.correct not in (None, before.correct):
        moved[before.correct].append("right")
    ends = before.ending == "finished", after.ending == "finished"
    if ends[0] != ends[1]:
        moved[ends[0]].append("has an end")
    return sorted(moved[0]), sorted(moved[1])


def _changes(
    one: Results, other: Results, pairs: Sequence[tuple[Prediction, Prediction]]
) -> list[Change]:
    made = [
        _paired("accuracy", pairs, lambda line: line.correct),
        Change("recovery", _recovery(one), _recovery(other), 1),
        Change("KL to the teacher, of zero-shot's", one.kl_share, other.kl_share, -1),
        Change("drift", _drift(one), _drift(other), -1),
        Change("prompt tokens saved", one.tokens_saved, other.tokens_saved, 1),
    ]
    lengths = [sum(pair[n].tokens or 0 for pair in pairs) / len(pairs) for n in (0, 1)]
    made.append(Change("tokens of an answer", lengths[0], lengths[1], 0))
    made.append(_paired("answers with an end", pairs, lambda line: line.ending == "finished"))
    rules = dict.fromkeys(name for pair in pairs for line in pair for name in line.rules)
    for name in rules:
        made.append(_paired(f"rule: {name}", pairs, lambda line, name=name: line.rules.get(name)))  # type: ignore[misc]
    return [one for one in made if one.before is not None or one.after is not None]


def _paired(
    name: str,
    pairs: Sequence[tuple[Prediction, Prediction]],
    of: Callable[[Prediction], bool | None],
) -> Change:
    """A share of the rows for which both runs have a value, and McNemar's exact test."""
    known = [
        (bool(first), bool(second))
        for one, other in pairs
        if (first := of(one)) is not None and (second := of(other)) is not None
    ]
    if not known:
        return Change(name, None, None, 1)
    only = [
        sum(pair == (True, False) for pair in known),
        sum(pair == (False, True) for pair in known),
    ]
    shares = [sum(pair[n] for pair in known) / len(known) for n in (0, 1)]
    return Change(name, shares[0], shares[1], 1, mcnemar(*only))


def _recovery(results: Results) -> float | None:
    return results.recovery


def _drift(results: Results) -> float | None:
    return results.methods[0].drift.kl_to_base if results.methods[0].drift else None
