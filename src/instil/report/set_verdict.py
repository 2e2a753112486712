"""The verdict on one set of evaluation rows.

A sentence never claims more than the intervals and the paired tests show. If no method is above
chance, the verdict says only this. Free text has no chance level. If almost no answer is right,
accuracy says little; then the KL to the teacher and the cross-entropy of the completions show what
was learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from instil.methods import MethodName
from instil.report.analysis import Analysis, SetFacts
from instil.report.groups import SOLVED, Control, Group, SetSummary
from instil.report.numerals import (
    count,
    interval,
    listed,
    number,
    p_text,
    percent,
    points,
    signed,
    whole_percent,
)
from instil.report.paired import Outcome, PairTest, recovery_bounds
from instil.results.recovery import recovery
from instil.results.scores import Completions

Tone = Literal["good", "short", "open"]
KEPT = 0.9
"""A good student recovers at least this share of the gain, or removes it from the divergence."""
NO_DIVERGENCE = 1e-3
"""KL in nats per token below which the context changes so little that a share has no meaning."""
NOT_SOLVED = "Not solved"
RIVALS: tuple[MethodName, ...] = (
    "in_context",
    "zero_shot",
    "vanilla_fine_tuning",
    "pattern_fine_tuning",
    "pattern_fine_tuning_in_context",
)
CONTROL_NAMES: dict[Control | None, str] = {
    "zero-shot teacher": "a zero-shot teacher",
    "shuffled answers": "shuffled answers",
}
COMPLETIONS: dict[Completions, str] = {
    "gold": "The gold answers",
    "teacher": "The teacher’s completions",
}
_WORDS: dict[Outcome, str] = {
    "better": "better than",
    "worse": "worse than",
    "level": "not significantly different from",
}


@dataclass(frozen=True)
class Verdict:
    """A headline with its most important number, and the evidence for it; and what is kept."""

    tone: Tone
    label: str
    headline: str
    figure: str
    figure_caption: str
    evidence: tuple[str, ...]
    rest: str = ""


@dataclass(frozen=True)
class SetVerdict:
    """The verdict on a set.

    Attributes:
        set: The set.
        tone: Whether the result is good.
        label: The verdict in two or three words.
        sentences: The full verdict.
        skill: Whether a method is above chance, or solves part of a free-text set.
        opening: A headline of the report about this set: how much of the prompt's gain the only
            student recovers, or how close it is to its teacher. None if there is no such headline.
    """

    set: SetFacts
    tone: Tone
    label: str
    sentences: tuple[str, ...]
    skill: bool = True
    opening: Verdict | None = None


def judge_set(analysis: Analysis, facts: SetFacts) -> SetVerdict:
    """The verdict on a set: the best method, and how distillation compares with the others."""
    if not facts.graded:
        return _opened(facts, _by_fidelity(analysis, facts))
    judged = _judge_answers(analysis, facts)
    if not facts.written:
        return judged
    return replace(judged, sentences=(*judged.sentences, *_closeness(analysis, facts)))


def share_closed(before: float, after: float) -> float | None:
    """Share of the divergence from the teacher that training removed; None without a divergence."""
    return 1 - after / before if before >= NO_DIVERGENCE else None


def floor(facts: SetFacts) -> str:
    """The level that accuracy must exceed: chance, or for free text a few percent."""
    return percent(SOLVED, 0) if facts.written else "chance"


def against(analysis: Analysis, name: str, student: Group, method: MethodName) -> PairTest | None:
    """The test of a student against a method: the plain prompt, or its best setting."""
    # Distillation is the last method in the table, so it is always `test.one`.
    tests = [
        test
        for test in analysis.tests_of(name)
        if test.one is student and test.other.method == method
    ]
    plain = [test for test in tests if test.other.plain_prompt]
    return max(plain or tests, key=lambda test: test.other.scores[name].mean, default=None)


def named(test: PairTest) -> str:
    """Name of what a student is compared with: a control, a teacher, a prompt or a method."""
    if test.controls:
        return f"its control with {CONTROL_NAMES[test.other.control]}"
    if _teacher(test):
        return "its teacher"
    if test.other.plain_prompt and any(key.startswith("teacher.") for key in test.other.settings):
        return "the plain prompt"
    return test.other.title.lower()


def closest(analysis: Analysis) -> tuple[str, str] | None:
    """The student's KL to its teacher, for a headline without accuracy, and its caption."""
    for facts in analysis.sets:
        student = analysis.best(facts.name, "distillation")
        kl = student.scores[facts.name].kl if student else None
        if student and kl is not None:
            caption = f"nats per token: KL to the teacher on {facts.name}, {_inline(student)}"
            return number(kl), caption
    return None


def _judge_answers(analysis: Analysis, facts: SetFacts) -> SetVerdict:
    scored = analysis.scored(facts.name)
    above = [pair for pair in scored if pair[1].graded.standing == "above"]
    if not above:
        return _without_skill(analysis, facts, scored)
    if verdict := _by_recovery(analysis, facts):
        return _opened(facts, verdict, *_row_by_row(analysis, facts))
    best, score = max(scored, key=lambda pair: pair[1].mean)
    of = f", the highest of {len(scored)} settings" if len(scored) > 1 else ""
    first = f"{best.label()} has an accuracy of {_score(score)}{of}."
    if score.graded.standing != "above":
        first += f" But its interval is not completely above {floor(facts)}."
    student = analysis.best(facts.name, "distillation")
    if student is None or not student.scores[facts.name].accuracy:
        others = [t for t in analysis.tests_of(facts.name) if best in (t.one, t.other)]
        apart = sum(test.separated for test in others)
        second = f"In the paired tests, it differs significantly from {apart} of {count(len(others), 'other')}."
        return SetVerdict(facts, "open", "Scores only", (first, second) if others else (first,))
    sentences = [first]
    own = student.scores[facts.name]
    if student is not best:
        sentences.append(f"{student.label()} has an accuracy of {_score(own)}.")
    if own.graded.standing != "above":
        sentences.append(f"Distillation is not shown to be above {floor(facts)} on this set.")
    tests = {m: t for m in RIVALS if (t := against(analysis, facts.name, student, m))}
    own_tests = [test for test in analysis.tests_of(facts.name) if test.one is student]
    others = [t for t in own_tests if t.controls or (_teacher(t) and t not in tests.values())]
    sentences.append(_tested([*tests.values(), *others]))
    tone, label = _judged(own, tests)
    return SetVerdict(facts, tone, label, tuple(sentences))


def _judged(own: SetSummary, tests: dict[MethodName, PairTest]) -> tuple[Tone, str]:
    outcomes = {method: test.outcome for method, test in tests.items()}
    context, zero = outcomes.get("in_context"), outcomes.get("zero_shot")
    if own.graded.standing != "above":
        return "open", f"Distillation {'near 0' if own.written else 'not above chance'}"
    if "worse" in (context, zero):
        rival = tests["in_context" if context == "worse" else "zero_shot"]
        return "short", f"Worse than {named(rival)}"
    if context == "better":
        return "good", f"Better than {named(tests['in_context'])}"
    if zero == "better":
        return "good", "Better than zero-shot"
    return "open", "No significant difference" if tests else "Not tested"


def _without_skill(
    analysis: Analysis, facts: SetFacts, scored: list[tuple[Group, SetSummary]]
) -> SetVerdict:
    apart = _still_apart(analysis, facts)
    standings = [score.graded.standing for _, score in scored]
    below, unclear = standings.count("below"), standings.count("unclear")
    if facts.written:
        sure = not unclear
        label = NOT_SOLVED if sure else "Not shown to be solved"
        first = _unsolved(facts, scored, unclear)
        return SetVerdict(facts, "open", label, (first, *apart), skill=False)
    levels = f"chance ({percent(facts.chance)}) and the majority label ({percent(facts.majority)})"
    label = "At chance" if not below and not unclear else "Not above chance"
    who = "All methods are" if len(scored) > 1 else f"{scored[0][0].label()} is"
    none = "No method is" if len(scored) > 1 else f"{scored[0][0].label()} is not"
    if unclear:
        first = (
            f"{none} shown to be above chance on {facts.name}: no interval is completely above "
            f"{levels}. For {part(unclear, len(scored))}, the interval is too wide to exclude that the "
            "method is above chance."
        )
    elif below:
        first = f"{none} above chance on {facts.name}; {below} of {len(scored)} are below {levels}."
    else:
        first = f"{who} at chance on {facts.name}: no interval is completely above {levels}."
    return SetVerdict(facts, "open", label, (first, *apart), skill=False)


def _unsolved(facts: SetFacts, scored: Sequence[tuple[Group, SetSummary]], unclear: int) -> str:
    best, score = max(scored, key=lambda pair: pair[1].mean)
    highest = f"the highest accuracy is {percent(score.mean)} ({best.label()})"
    if not unclear:
        return f"No method solves {facts.name}: {highest}, and all intervals are near 0."
    return (
        f"No method is shown to solve {facts.name}: {highest}, and no interval is completely "
        f"above {floor(facts)}. {unclear} of {count(len(scored), 'interval')} "
        f"{'is' if unclear == 1 else 'are'} too wide to exclude a higher accuracy."
    )


def _still_apart(analysis: Analysis, facts: SetFacts) -> Iterator[str]:
    apart = sum(test.separated for test in analysis.tests_of(facts.name))
    if apart:
        yield (
            f"The paired tests still show a significant difference in {count(apart, 'pair')}: the "
            "methods are wrong on different rows. This does not show that one of them solves the task."
        )


def _tested(tests: list[PairTest]) -> str:
    if not tests:
        return (
            "No other method answered the same rows with the same settings, so nothing is tested."
        )
    by_outcome: dict[Outcome, list[str]] = {}
    for test in tests:
        size = f"{signed(test.difference)}, {p_text(test.p_holm)}"
        by_outcome.setdefault(test.outcome, []).append(f"{named(test)} ({size})")
    found = [f"{words} {listed(by_outcome[o])}" for o, words in _WORDS.items() if o in by_outcome]
    return f"In the paired tests, distillation is {'; '.join(found)}."


def _teacher(test: PairTest) -> bool:
    """Whether a student is compared with a teacher that is not the plain prompt."""
    return test.other.method == "in_context" and not test.other.plain_prompt


def _opened(facts: SetFacts, verdict: Verdict, *more: str) -> SetVerdict:
    sentences = (verdict.headline, *verdict.evidence, *more)
    return SetVerdict(facts, verdict.tone, verdict.label, sentences, opening=verdict)


def _by_recovery(analysis: Analysis, facts: SetFacts) -> Verdict | None:
    """How much of the prompt's gain the student recovers; None if there are other methods."""
    found = analysis.comparison
    if found is None or found.zero_shot is None or found.in_context is None:
        return None
    groups = (found.zero_shot, found.in_context, found.student)
    scores = [g.scores[facts.name] for g in groups if facts.name in g.scores]
    if len(analysis.groups) > len(groups) or len([s for s in scores if s.accuracy]) < len(groups):
        return None
    zero, context, student = scores
    gain = context.mean - zero.mean
    prompt = _outcome(analysis, facts, found.in_context, found.zero_shot)
    untrained = _outcome(analysis, facts, found.student, found.zero_shot)
    rows = count(student.rows, "held-out row")
    if student.seeds > 1:
        rows += f" in each of {student.seeds} seeds"
    evidence = (
        f"On {rows}: zero-shot {_score(zero)}, in-context {_score(context)}, "
        f"the student {_score(student)}."
    )
    recovered = recovery(zero_shot=zero.mean, in_context=context.mean, student=student.mean)
    if recovered is None:
        verb = "reduces accuracy" if prompt == "worse" else "does not increase accuracy"
        return Verdict(
            tone="open",
            label="Nothing to recover",
            headline=f"The prompt {verb} on these rows, so there is nothing to recover.",
            figure=signed(gain),
            figure_caption="in-context accuracy minus zero-shot accuracy",
            evidence=(evidence, _beside(analysis, facts, found.student, found.zero_shot)),
        )
    bounds = recovery_bounds(*groups, facts.name, analysis.marks)
    tone, label, headline = _by_share(recovered, bounds, points(gain), rows, prompt, untrained)
    doubt = "This gain is so uncertain that a share of it says little."
    spread = bounds and f"The 95 % interval of recovery is {interval(*bounds)}."
    return Verdict(
        tone=tone,
        label=label,
        headline=headline,
        figure=whole_percent(recovered),
        figure_caption="recovery: (student \N{MINUS SIGN} zero-shot) / "
        "(in-context \N{MINUS SIGN} zero-shot)",
        evidence=(
            evidence,
            _beside(analysis, facts, found.student, found.in_context),
            *([spread] if spread else []),
            *([doubt] if prompt == "level" else []),
        ),
    )


def _by_share(
    share: float,
    bounds: tuple[float, float] | None,
    gain: str,
    rows: str,
    prompt: Outcome,
    untrained: Outcome,
) -> tuple[Tone, str, str]:
    """Tone, label and headline of a verdict on the share of the prompt's gain."""
    if prompt == "level":
        headline = f"Undecided on {rows}: the prompt’s gain of {gain} is not significant."
        return "open", "Undecided", headline
    if untrained == "worse":
        return (
            "short",
            "Worse than zero-shot",
            "The student is worse than the model without training.",
        )
    if share <= 0:
        headline = "The student recovers nothing of the prompt’s gain."
        return "short", "Not recovered", headline
    recovered = whole_percent(share) if share < 1 else f"all ({whole_percent(share)})"
    if share < KEPT and bounds and bounds[1] >= KEPT:
        headline = (
            f"The student recovers {recovered} of the prompt’s gain. On {rows} this is not clearly "
            f"below {whole_percent(KEPT)}."
        )
        return "open", "Undecided", headline
    if share < KEPT:
        headline = f"The student recovers only {recovered} of the prompt’s gain."
        return "short", "Partly recovered", headline
    headline = f"The student recovers {recovered} of the prompt’s gain"
    if untrained == "level":
        headline += f", but on {rows} it is not significantly better than zero-shot"
        return "open", "Undecided", f"{headline}."
    return "good", "Recovered", f"{headline}."


def _paired(analysis: Analysis, facts: SetFacts, one: Group, other: Group) -> PairTest | None:
    tests = analysis.tests_of(facts.name)
    return next((test for test in tests if test.one is one and test.other is other), None)


def _outcome(analysis: Analysis, facts: SetFacts, one: Group, other: Group) -> Outcome:
    """The result of the paired test, or of the two intervals if no predictions were stored."""
    if test := _paired(analysis, facts, one, other):
        return test.outcome
    ours, theirs = one.scores[facts.name].graded, other.scores[facts.name].graded
    if ours.low > theirs.high:
        return "better"
    return "worse" if ours.high < theirs.low else "level"


def _beside(analysis: Analysis, facts: SetFacts, student: Group, other: Group) -> str:
    words = f"{_WORDS[_outcome(analysis, facts, student, other)]} {other.title.lower()}"
    if test := _paired(analysis, facts, student, other):
        size = f"{signed(test.difference)}, {p_text(test.p_holm)}"
        return f"In the paired test on the same rows, the student is {words} ({size})."
    return (
        f"By the intervals, the student is {words}. No predictions were stored for a paired test."
    )


def _row_by_row(analysis: Analysis, facts: SetFacts) -> Iterator[str]:
    """Counts of rows that student and prompt get right, which two accuracies cannot show."""
    found = analysis.comparison
    if found is None or found.in_context is None:
        return
    test = _paired(analysis, facts, found.student, found.in_context)
    if test and test.seeds == 1:
        neither = test.rows - test.both - test.only_one - test.only_other
        yield (
            f"Row by row, on the same {count(test.rows, 'row')}: both right on {count(test.both)}, "
            f"only in-context on {count(test.only_other)}, only the student on "
            f"{count(test.only_one)}, neither on {count(neither)}."
        )


def _by_fidelity(analysis: Analysis, facts: SetFacts) -> Verdict:
    """How close the student is to its teacher, for a set without gold outputs."""
    student, zero = (analysis.best(facts.name, m) for m in ("distillation", "zero_shot"))
    own = student.scores[facts.name] if student else None
    first = zero.scores[facts.name] if zero else None
    ungraded = (
        "These rows have no gold outputs, so the report cannot show whether answers are right. "
        "It shows the fidelity to the teacher."
    )
    if own is None or own.kl is None or own.agreement is None:
        headline = (
            "Without gold outputs and without a distilled student, there is nothing to compare."
        )
        figure = count(len(analysis.answered(facts.name)))
        return Verdict("open", "Nothing to compare", headline, figure, "settings", (ungraded,))
    on = f"On {count(own.tokens, 'held-out token')}: KL to the teacher"
    if first is None or first.kl is None or first.agreement is None:
        return Verdict(
            tone="open",
            label="Not compared",
            headline="The student’s KL to the teacher has no comparison: zero-shot was not measured.",
            figure=number(own.kl),
            figure_caption="KL to the teacher, nats per token",
            evidence=(ungraded, f"{on} {number(own.kl)} nats per token."),
        )
    closed = share_closed(first.kl, own.kl)
    tone, label, headline = _closed(closed)
    return Verdict(
        tone=tone,
        label=label,
        headline=headline,
        figure=number(own.kl) if closed is None else whole_percent(closed),
        figure_caption="KL to the teacher, nats per token"
        if closed is None
        else "of the KL to the teacher removed by training",
        evidence=(
            ungraded,
            f"{on} {number(first.kl)} before and {number(own.kl)} after training, in nats per "
            f"token; top-1 agreement {percent(first.agreement)} before and "
            f"{percent(own.agreement)} after.",
        ),
    )


def _closed(closed: float | None) -> tuple[Tone, str, str]:
    if closed is None:
        headline = (
            "The context hardly changes the model’s predictions, so there is nothing to recover."
        )
        return "open", "Nothing to recover", headline
    if closed >= KEPT:
        headline = (
            "The student’s predictions are close to the teacher’s: training removes "
            f"{whole_percent(closed)} of the divergence."
        )
        return "good", "Close to the teacher", headline
    if closed > 0:
        headline = f"Training removes only {whole_percent(closed)} of the student’s divergence from the teacher."
        return "short", "Not close to the teacher", headline
    headline = "Training increased the student’s divergence from the teacher."
    return "short", "Further from the teacher", headline


def _closeness(analysis: Analysis, facts: SetFacts) -> Iterator[str]:
    """Sentences on the KL to the teacher and on the cross-entropy of the completions."""
    student, zero = (analysis.best(facts.name, m) for m in ("distillation", "zero_shot"))
    kl = [f.scores[facts.name].kl for f in (student, zero) if f]
    own = kl[0] if student else None
    if student and own is not None:
        sentence = f"KL to the teacher is {number(own)} nats per token for {_inline(student)}"
        before = kl[1] if zero else None
        yield sentence + (f", and {number(before)} for zero-shot." if before is not None else ".")
    entropies = [
        (score.cross_entropy, found)
        for found, score in analysis.answered(facts.name)
        if score.cross_entropy is not None
    ]
    if len(entropies) > 1:
        lowest, found = min(entropies, key=lambda pair: pair[0])
        sentence = (
            f"{COMPLETIONS[facts.completions or 'gold']} have the highest probability under {_inline(found)}: "
            f"cross-entropy {number(lowest)} nats per token"
        )
        first = next((value for value, f in entropies if f is zero), None)
        if first is None or found is zero:
            yield f"{sentence}."
        else:
            yield f"{sentence}, and {number(first)} for zero-shot."


def _score(score: SetSummary) -> str:
    accuracy = score.graded
    return f"{percent(accuracy.mean)} ({interval(accuracy.low, accuracy.high)})"


def part(some: int, total: int, noun: str = "setting") -> str:
    """A part of a number of things, in words."""
    return f"all {count(total, noun)}" if some == total > 1 else f"{some} of {count(total, noun)}"


def _inline(group: Group) -> str:
    label = group.label()
    return label[0].lower() + label[1:]
