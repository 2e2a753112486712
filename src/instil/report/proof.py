"""What the answers of a run are like: rules, ends, leaks, fidelity by part, general prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from instil.methods import METHODS, MethodName
from instil.report.analysis import Analysis
from instil.report.numerals import MISSING, count, fixed, interval, number, p_text, percent
from instil.report.read import Mark, printable
from instil.report.tables import NOTHING, Table, TableCell, TableRow
from instil.results.schema import MethodResult, Results
from instil.results.scores import Fidelity, PartFidelity, Proportion, SetScore, Written
from instil.results.statistics import mcnemar

SIGNIFICANT = 0.05
WORST = 3
"""Rows that are shown of a rule that the student lost."""


@dataclass(frozen=True)
class Broken:
    """A row on which the student breaks a rule that its teacher obeys."""

    number: int
    input: str
    teacher: str
    student: str


@dataclass(frozen=True)
class LostRule:
    """A rule that the student obeys less often than its teacher, clear of chance."""

    name: str
    rows: int
    worst: list[Broken]


@dataclass(frozen=True)
class SetProof:
    """What the answers on a set are like.

    Attributes:
        name: Name of the set.
        tables: Heading -> a sentence and a table.
        lost: Rules that the student lost.
    """

    name: str
    tables: list[tuple[str, str, Table]]
    lost: list[LostRule]


@dataclass(frozen=True)
class Proof:
    """What the answers of a run are like.

    Attributes:
        sets: The sets with free-text answers.
        retention: A sentence and a table of general prompts; None if they were not asked.
        served: The same of the places where the student was served; None if there are none.
        harness: The same of benchmarks; None if none were run.
    """

    sets: list[SetProof]
    retention: tuple[str, Table] | None
    served: tuple[str, Table] | None
    harness: tuple[str, Table] | None


def proof(analysis: Analysis) -> Proof | None:
    """The proof of a single run with free-text answers; None for others."""
    if not analysis.study.single or not analysis.study.finished:
        return None
    results = analysis.study.finished[0]
    made = []
    for number_, score in enumerate(results.methods[0].scores):
        if score.written is not None:
            tables = [*_tables(analysis, results, number_)]
            made.append(SetProof(printable(score.name), tables, lost_rules(analysis, score.name)))
    if not made:
        return None
    return Proof(made, _retention(results.methods[0]), _served(results), _harness(results))


def lost_rules(analysis: Analysis, name: str) -> list[LostRule]:
    """The rules that the student obeys less often than its teacher, clear of chance."""
    teacher, student = _marks(analysis, name)
    rules = dict.fromkeys(rule for mark in student.values() for rule in mark.rules)
    lost = []
    for rule in rules:
        mine = {n for n, mark in student.items() if mark.rules.get(rule) is False}
        theirs = {n for n, mark in teacher.items() if mark.rules.get(rule) is False}
        only = sorted(mine - theirs, key=lambda n: -(student[n].kl or 0.0))
        if len(only) > len(theirs - mine) and mcnemar(len(only), len(theirs - mine)) < SIGNIFICANT:
            worst = [
                Broken(n, student[n].input, teacher[n].text or "", student[n].text or "")
                for n in only[:WORST]
                if n in teacher
            ]
            lost.append(LostRule(rule, len(only), worst))
    return lost


def _marks(analysis: Analysis, name: str) -> tuple[dict[int, Mark], dict[int, Mark]]:
    """The answers of teacher and student on a set: row -> answer."""
    found: dict[bool, dict[int, Mark]] = {True: {}, False: {}}
    for cell in analysis.study.cells:
        marks = analysis.marks.get(cell.name, {}).get(printable(name), {})
        if cell.method == "in_context":
            found[True] = marks
        elif METHODS[cell.method].learns:
            found[False] = marks
    return found[True], found[False]


def _tables(analysis: Analysis, results: Results, place: int) -> Iterator[tuple[str, str, Table]]:
    by_method: dict[MethodName, SetScore] = {
        name: found.scores[place]
        for name in METHODS
        if (found := results.result(name)) is not None and found.scores[place].written
    }
    written = {name: score.written for name, score in by_method.items() if score.written}
    teacher, student = _marks(analysis, results.methods[0].scores[place].name)
    if rules := _shares(written, lambda one: one.rules):
        lines = []
        for rule, shares in rules.items():
            broken = [
                {n for n, mark in of.items() if mark.rules.get(rule) is False}
                for of in (student, teacher)
            ]
            p = mcnemar(len(broken[0] - broken[1]), len(broken[1] - broken[0]))
            cells = [TableCell(str(n := max(s.n for s in shares.values())), n)]
            cells += [_share(shares.get(name)) for name in written]
            cells.append(TableCell(p_text(p), p) if teacher and student else NOTHING)
            lines.append(TableRow(rule, "", tuple(cells)))
        columns = ("Applies to", *_labels(written), "p, student against in-context")
        yield (
            "Rules",
            "Share of the answers that obey each rule, of those to which it applies, with its 95 % "
            "interval (Wilson’s), and McNemar’s exact test of the student against its teacher.",
            Table("Rules", "Rule", columns, tuple(lines)).filled(),
        )
    metrics = _shares(written, lambda one: one.metrics)
    if len(metrics) > 1:
        lines = [
            TableRow(name, "", tuple(_share(shares.get(method)) for method in written))
            for name, shares in metrics.items()
        ]
        yield (
            "Metrics",
            "Means over rows with a gold output. The first metric is the accuracy of this report.",
            Table("Metrics", "Metric", tuple(_labels(written)), tuple(lines)),
        )
    yield from _judged(written)
    yield _ends(by_method)
    yield _beside_teacher(by_method)
    yield from _parts(by_method)
    yield from _leaks(written)


def _judged(written: dict[MethodName, Written]) -> Iterator[tuple[str, str, Table]]:
    for name, one in written.items():
        found = one.judged
        if found is None:
            continue
        both = _percent(found.same_in_both_orders) if found.same_in_both_orders else "none"
        text = (
            f"{printable(found.judge)} compared the student’s answers with in-context, each pair in both "
            f"orders; {both} of the pairs were judged the same in both. A row is won or lost only if both "
            f"orders say so. {count(found.equal, 'row')} had equal answers, and "
            f"{count(found.unread, 'verdict')} could not be read: these are ties. A win rate of 50 % "
            "means: as good as the teacher."
        )
        ties = found.rows - found.wins - found.losses
        cells = (
            TableCell(str(found.rows), found.rows),
            TableCell(str(found.wins), found.wins),
            TableCell(str(ties), ties),
            TableCell(str(found.losses), found.losses),
            _share(found.win_rate),
        )
        columns = ("Rows", "Won", "Tied", "Lost", "Win rate")
        row = TableRow(METHODS[name].label, name, cells)
        yield "Judge", text, Table("Judge", "Method", columns, (row,))


def _ends(by_method: dict[MethodName, SetScore]) -> tuple[str, str, Table]:
    lines = [
        TableRow(
            METHODS[name].label,
            name,
            (
                TableCell(fixed(one.ends.tokens_mean), one.ends.tokens_mean),
                _share(one.ends.cut),
                _share(one.ends.repeats),
            ),
        )
        for name, score in by_method.items()
        if (one := score.written)
    ]
    text = (
        "An answer without an end reached the length limit, or was cut because it repeats itself: 4 "
        "times the same text, in 64 tokens or more."
    )
    columns = ("Tokens, mean", "Without an end", "Repeats itself")
    return "Length and ends", text, Table("Length and ends", "Method", columns, tuple(lines))


def _beside_teacher(by_method: dict[MethodName, SetScore]) -> tuple[str, str, Table]:
    lines = []
    for name, score in by_method.items():
        one = score.written
        assert one is not None
        same, own = one.same_start, one.on_own
        cells = (
            _share(one.same_answer),
            NOTHING if same is None else TableCell(percent(same), same),
            _number(own.kl_to_teacher if own else None),
            TableCell(percent(own.agreement), own.agreement) if own else NOTHING,
            _number(score.cross_entropy),
            _number(one.with_context),
        )
        lines.append(TableRow(METHODS[name].label, name, cells))
    text = (
        "“Same answer” and “same start” compare with the teacher’s answer, token by token. KL and "
        "agreement on the student’s answers show how the teacher would have written on where the "
        "student writes. The last column is what the student loses against in-context, in nats per "
        "token, if the context is put back before it: near 0 if it still listens."
    )
    columns = (
        "Same answer",
        "Same start",
        "KL on the student’s answers",
        "Agreement on these",
        "Cross-entropy",
        "With the context put back",
    )
    return (
        "Beside the teacher",
        text,
        Table("Beside the teacher", "Method", columns, tuple(lines)).filled(),
    )


def _parts(by_method: dict[MethodName, SetScore]) -> Iterator[tuple[str, str, Table]]:
    told: list[tuple[str, Callable[[Written], list[PartFidelity]]]] = [
        ("turn", lambda one: one.by_turn),
        ("position", lambda one: one.by_position),
    ]
    for title, of in told:
        parts: dict[str, dict[MethodName, PartFidelity]] = {}
        for name, score in by_method.items():
            for part in of(score.written) if score.written else ():
                parts.setdefault(part.part, {})[name] = part
        if len(parts) < 2:
            continue
        names = list(dict.fromkeys(name for found in parts.values() for name in found))
        columns = [
            f"{what}, {METHODS[name].label}" for name in names for what in ("KL", "Agreement")
        ]
        lines = []
        for named, found in parts.items():
            tokens = max(one.tokens for one in found.values())
            cells = [TableCell(count(tokens), tokens)]
            for name in names:
                cells += _pair(found.get(name))
            lines.append(TableRow(named, "", tuple(cells)))
        yield (
            f"Fidelity by {title}",
            "Mean KL to the teacher in nats per token, and share of the tokens that both expect.",
            Table(f"Fidelity by {title}", title.capitalize(), ("Tokens", *columns), tuple(lines)),
        )


def _leaks(written: dict[MethodName, Written]) -> Iterator[tuple[str, str, Table]]:
    for one in written.values():
        found = one.leaks
        if found is None:
            continue
        lines = [
            TableRow(
                f"“{phrase.text}”",
                "",
                (
                    TableCell(str(phrase.student), phrase.student),
                    TableCell(str(phrase.teacher), phrase.teacher),
                ),
            )
            for phrase in found.phrases
        ]
        text = (
            f"{_percent(found.share)} of the student’s answers hold a phrase of the "
            "context, or speak of it, where the teacher’s answer does not; phrases count that the "
            "student writes more often, clear of chance. 8 words in a row of the context are in "
            f"{_percent(found.verbatim)} of its answers, and in {_percent(found.verbatim_teacher)} of "
            "the teacher’s."
        )
        columns = ("Student’s answers", "Teacher’s answers")
        yield "Leaks", text, Table("Leaks", "Phrase", columns, tuple(lines))


def _retention(student: MethodResult) -> tuple[str, Table] | None:
    found = student.retention
    if found is None:
        return None
    forms = any(one.obeyed for one in found.kinds.values())
    lines = []
    for kind, one in found.kinds.items():
        cells = [
            TableCell(str(one.prompts), one.prompts),
            _share(one.same_answer),
            _number(one.kl_to_base),
            TableCell(percent(one.length, 0), one.length),
        ]
        if forms:
            cells += [_share(one.obeyed_by_base), _share(one.obeyed)]
        lines.append(TableRow(kind, "", tuple(cells)))
    text = (
        f"{count(found.prompts, 'prompt')} that have nothing to do with the task, without any context. "
        f"The student gives the same answer as its base to {_percent(found.same_answer)} of them, in "
        f"the first 32 tokens; its KL to the base on the base’s answers is {number(found.kl_to_base)} "
        f"nats per token, and its answers have {percent(found.length, 0)} of the base’s length."
    )
    columns = ["Prompts", "Same answer", "KL to the base", "Length"]
    if forms:
        columns += ["Form obeyed by the base", "By the student"]
    return text, Table("General prompts", "Kind", tuple(columns), tuple(lines)).filled()


def _served(results: Results) -> tuple[str, Table] | None:
    if not results.served:
        return None
    lines = []
    rules = dict.fromkeys(rule for one in results.served for rule in one.rules)
    for one in results.served:
        cells = [
            TableCell(str(one.rows), one.rows),
            _share(one.same_answer),
            _share(one.accuracy),
            _share(one.accuracy_in_process),
            NOTHING if one.p is None else TableCell(p_text(one.p), one.p),
            *(_share(one.rules.get(rule)) for rule in rules),
            TableCell(fixed(one.rows / one.seconds), one.rows / one.seconds),
        ]
        lines.append(TableRow(f"{printable(one.where)}, {printable(one.set)}", "", tuple(cells)))
    text = (
        "The run’s rows, answered again where the student will be served. “Same answer” compares with "
        "the run’s own answers, letter by letter: other kernels round otherwise, so some differ. What "
        "counts is whether as many are right; p is McNemar’s exact test between the two."
    )
    columns = (
        *("Rows", "Same answer", "Accuracy", "In the run", "p"),
        *map(printable, rules),
        "Answers per second",
    )
    return text, Table("As served", "Where", columns, tuple(lines)).filled()


def _harness(results: Results) -> tuple[str, Table] | None:
    if not results.harness:
        return None
    lines = []
    for one in results.harness:
        errors = (one.base_error, one.student_error)
        cells = (
            NOTHING if one.examples is None else TableCell(str(one.examples), one.examples),
            *(
                TableCell(number(value), value, "" if error is None else f"(± {number(error)})")
                for value, error in zip((one.base, one.student), errors, strict=True)
            ),
            TableCell(f"{one.student - one.base:+.3f}", one.student - one.base),
        )
        lines.append(TableRow(f"{printable(one.task)}, {printable(one.metric)}", "", cells))
    text = (
        "Tasks of lm-evaluation-harness with the adapter off and on, without the context. Behind ± "
        "stands the standard error that the harness gives."
    )
    columns = ("Examples", "Base", "Student", "Difference")
    return text, Table("Benchmarks", "Task", columns, tuple(lines)).filled()


def _shares(
    written: dict[MethodName, Written], of: Callable[[Written], dict[str, Proportion]]
) -> dict[str, dict[MethodName, Proportion]]:
    """Name -> method -> share."""
    made: dict[str, dict[MethodName, Proportion]] = {}
    for method, one in written.items():
        for name, share in of(one).items():
            made.setdefault(name, {})[method] = share
    return made


def _labels(written: Sequence[MethodName] | dict[MethodName, Written]) -> list[str]:
    return [METHODS[name].label.capitalize() for name in written]


def _share(found: Proportion | None) -> TableCell:
    if found is None:
        return NOTHING
    return TableCell(percent(found.value), found.value, f"({interval(found.low, found.high)})")


def _percent(found: Proportion) -> str:
    return percent(found.value)


def _number(value: float | None) -> TableCell:
    return NOTHING if value is None else TableCell(number(value), value)


def _pair(found: Fidelity | None) -> list[TableCell]:
    if found is None:
        return [TableCell(MISSING)] * 2
    return [_number(found.kl_to_teacher), TableCell(percent(found.agreement), found.agreement)]
