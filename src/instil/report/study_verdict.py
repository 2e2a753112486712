"""The sentences that a study's report opens with, and what to watch before they are believed.

The rule throughout: a sentence never says more than the intervals and the paired tests do. Where no
method clears chance, that is all that is said of a set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean as mean

from instil.methods import MethodName
from instil.report.analysis import Analysis, SetFacts
from instil.report.groups import TITLES, Control, Group, SetSummary
from instil.report.numerals import NBSP, count, percent, points
from instil.report.pairs import PairTest
from instil.report.study import K
from instil.report.verdict import FEW_ROWS, Tone, Verdict
from instil.report.written_verdict import NOT_SOLVED, closeness, closest, floor, unsolved

RIVALS: tuple[MethodName, ...] = (
    "in_context",
    "zero_shot",
    "vanilla_fine_tuning",
    "pattern_fine_tuning",
    "pattern_fine_tuning_in_context",
)
CONTROLS_SAID: dict[Control | None, str] = {
    "zero-shot teacher": "a zero-shot teacher",
    "shuffled answers": "shuffled answers",
}
ONE_LABEL = 0.95
"""From this share of the rows on, a method that predicts one label is said to predict it alone."""


@dataclass(frozen=True)
class SetVerdict:
    """What can be said of one set."""

    set: SetFacts
    tone: Tone
    label: str
    sentences: tuple[str, ...]
    skill: bool = True
    """Whether some method is above chance, or solves some of what is to be written."""


def judge_study(analysis: Analysis) -> tuple[Verdict, list[SetVerdict]]:
    """One headline for the study, and one judgement a set."""
    verdicts = [judge_set(analysis, facts) for facts in analysis.sets]
    if not verdicts:
        headline = "No cell of this study has finished."
        return Verdict("open", "Nothing to show", headline, "0", "finished cells", ()), []
    at_chance = [v for v in verdicts if not v.skill]
    figure, caption = _number(analysis, {v.set.name for v in verdicts} - _names(at_chance))
    if len(at_chance) == len(verdicts):
        said = _guessing(at_chance)
        where = f"on {'any' if said.startswith('no') else 'every'} set"
        if len(verdicts) == 1:
            where = f"on {verdicts[0].set.name}"
        headline, label = f"{said[0].upper()}{said[1:]} {where}.", "Nothing above chance"
        if all(verdict.set.written for verdict in verdicts):
            label = "Not solved"
            headline = f"{headline.rstrip('.')}: fidelity and cross-entropy are what to look at."
            figure, caption = closest(analysis) or (figure, caption)
        return Verdict("open", label, headline, figure, caption, _sizes(analysis)), verdicts
    label, tone, headline = _headline(analysis, verdicts, at_chance)
    return Verdict(tone, label, headline, figure, caption, _sizes(analysis)), verdicts


def _headline(
    analysis: Analysis, verdicts: list[SetVerdict], at_chance: list[SetVerdict]
) -> tuple[str, Tone, str]:
    against: dict[str, list[SetVerdict]] = {"ahead": [], "behind": [], "level": []}
    rival = ""
    for verdict in verdicts:
        student = analysis.best(verdict.set.name, "distillation")
        test = _against(analysis, verdict.set.name, student, "in_context") if student else None
        if test and verdict not in at_chance:
            against[_outcome(test)].append(verdict)
            rival = _named(test)
    tested = sum(len(found) for found in against.values())
    chance = ""
    if at_chance:
        chance = f"; on {_sets(at_chance)} {_guessing(at_chance)}"
    if not tested:
        return "Scored", "open", f"{_leaders(analysis, verdicts, at_chance)}{chance}."
    said = [
        f"{words} on {_sets(found)}"
        for words, found in (
            (f"ahead of {rival}", against["ahead"]),
            (f"behind {rival}", against["behind"]),
            (f"not told apart from {rival}", against["level"]),
        )
        if found
    ]
    tone: Tone = "open"
    if against["ahead"] and not against["behind"]:
        tone = "good"
    elif against["behind"] and not against["ahead"]:
        tone = "short"
    label = {"good": "Ahead", "short": "Behind", "open": "Mixed"}[tone]
    if not against["ahead"] and not against["behind"]:
        label = "Not told apart"
    return label, tone, f"Distillation is {_listed(said)}{chance}."


def _guessing(verdicts: list[SetVerdict]) -> str:
    written = {verdict.set.written for verdict in verdicts}
    if written == {True}:
        sure = all(verdict.label == NOT_SOLVED for verdict in verdicts)
        return f"no method {'solves' if sure else 'is shown to solve'} the task"
    if written == {True, False}:
        return "no method is shown to be above chance or to solve the task"
    if all(verdict.label == "At chance" for verdict in verdicts):
        return "all methods are at chance"
    return "no method is shown to be above chance"


def judge_set(analysis: Analysis, facts: SetFacts) -> SetVerdict:
    """What can be said of one set: who is highest, and from whom the rows tell distillation."""
    judged = _judge_answers(analysis, facts)
    if not facts.written:
        return judged
    return replace(judged, sentences=(*judged.sentences, *closeness(analysis, facts)))


def _judge_answers(analysis: Analysis, facts: SetFacts) -> SetVerdict:
    scored = analysis.scored(facts.name)
    above = [pair for pair in scored if pair[1].standing == "above"]
    if not above:
        return _without_skill(analysis, facts, scored)
    best, score = max(scored, key=lambda pair: pair[1].mean)
    of = f", the highest of {len(scored)} settings" if len(scored) > 1 else ""
    first = f"{best.label()} scores {percent(score.mean)} ({between(score)}){of}."
    if score.standing != "above":
        first += f" Its own interval does not clear {floor(facts)}."
    student = analysis.best(facts.name, "distillation")
    if student is None:
        others = [t for t in analysis.tests_of(facts.name) if best in (t.one, t.other)]
        apart = sum(test.separated for test in others)
        second = f"The paired tests tell it apart from {apart} of {count(len(others), 'other')}."
        return SetVerdict(facts, "open", "Scored", (first, second) if others else (first,))
    sentences = [first]
    own = student.scores[facts.name]
    if student is not best:
        sentences.append(f"{student.label()} scores {percent(own.mean)} ({between(own)}).")
    if own.standing != "above":
        sentences.append(f"Distillation itself is not shown to be above {floor(facts)} here.")
    tests = {m: t for m in RIVALS if (t := _against(analysis, facts.name, student, m))}
    own_tests = [test for test in analysis.tests_of(facts.name) if test.one is student]
    others = [t for t in own_tests if t.controls or (_teacher(t) and t not in tests.values())]
    sentences.append(_tested([*tests.values(), *others]))
    tone, label = _judged(own, tests)
    return SetVerdict(facts, tone, label, tuple(sentences))


def _judged(own: SetSummary, tests: dict[MethodName, PairTest]) -> tuple[Tone, str]:
    outcome = {method: _outcome(test) for method, test in tests.items()}
    context, zero = outcome.get("in_context"), outcome.get("zero_shot")
    if own.standing != "above":
        return "open", f"Distillation {'near 0' if own.written else 'not above chance'}"
    if "behind" in (context, zero):
        behind = tests["in_context" if context == "behind" else "zero_shot"]
        return "short", f"Behind {_named(behind)}"
    if context == "ahead":
        return "good", f"Ahead of {_named(tests['in_context'])}"
    if zero == "ahead":
        return "good", "Ahead of zero-shot"
    return "open", "Not told apart"


def _without_skill(
    analysis: Analysis, facts: SetFacts, scored: list[tuple[Group, SetSummary]]
) -> SetVerdict:
    if facts.written:
        return _unsolved(analysis, facts, scored)
    levels = f"chance ({percent(facts.chance)}) and the majority label ({percent(facts.majority)})"
    standings = [score.standing for _, score in scored]
    below, unclear = standings.count("below"), standings.count("unclear")
    label = "At chance" if not below and not unclear else "Not above chance"
    who = "All methods are" if len(scored) > 1 else f"{scored[0][0].label()} is"
    none = "No method is" if len(scored) > 1 else f"{scored[0][0].label()} is not"
    if unclear:
        first = (
            f"{none} shown to be above chance on {facts.name}: no interval lies wholly above "
            f"{levels}. In {_part(unclear, len(scored))} it is so wide that it leaves room for skill."
        )
    elif below:
        first = f"{none} above chance on {facts.name}; {below} of {len(scored)} lie below {levels}."
    else:
        first = f"{who} at chance on {facts.name}: no interval lies wholly above {levels}."
    return SetVerdict(facts, "open", label, (first, *_still_apart(analysis, facts)), skill=False)


def _unsolved(
    analysis: Analysis, facts: SetFacts, scored: list[tuple[Group, SetSummary]]
) -> SetVerdict:
    sure = all(score.standing == "at" for _, score in scored)
    sentences = (unsolved(facts, scored, sure=sure), *_still_apart(analysis, facts))
    return SetVerdict(
        facts, "open", NOT_SOLVED if sure else "Not shown to be solved", sentences, skill=False
    )


def _still_apart(analysis: Analysis, facts: SetFacts) -> Iterator[str]:
    apart = sum(test.separated for test in analysis.tests_of(facts.name))
    if apart:
        yield (
            f"The paired tests still tell {count(apart, 'pair')} apart: the methods err on "
            "different rows, and none of them can be said to solve the task."
        )


def _tested(tests: list[PairTest]) -> str:
    if not tests:
        return "No other method answered the same rows at the same settings, so nothing is tested."
    words = {"ahead": "ahead of", "behind": "behind", "level": "not apart from"}
    by_outcome: dict[str, list[str]] = {}
    for test in tests:
        size = f"{signed(test.difference)}, {p_text(test.p_holm)}"
        by_outcome.setdefault(_outcome(test), []).append(f"{_named(test)} ({size})")
    said = [f"{words[o]} {_listed(by_outcome[o])}" for o in words if o in by_outcome]
    return f"The paired tests find distillation {'; '.join(said)}."


def _outcome(test: PairTest) -> str:
    if not test.separated:
        return "level"
    # By the rows that the test counts, which is what it has shown.
    return "ahead" if test.only_one > test.only_other else "behind"


def _against(analysis: Analysis, name: str, student: Group, method: MethodName) -> PairTest | None:
    """The test of a student against a method; where it has several settings, at its best one, and of prompts at a plain one."""
    # Distillation is the last of the methods, so it is always the one that is held against another.
    tests = [
        test
        for test in analysis.tests_of(name)
        if test.one is student and test.other.method == method
    ]
    plain = [test for test in tests if test.other.plain_prompt]
    return max(plain or tests, key=lambda test: test.other.scores[name].mean, default=None)


def _teacher(test: PairTest) -> bool:
    """Whether a student is held against a teacher that is more than a plain prompt."""
    return test.other.method == "in_context" and not test.other.plain_prompt


def _named(test: PairTest) -> str:
    """What a student is held against; where teachers are more than a prompt, the prompt is told from them."""
    if test.controls:
        return f"its control with {CONTROLS_SAID[test.other.control]}"
    if _teacher(test):
        return "its teacher"
    if test.other.plain_prompt and any(key.startswith("teacher.") for key in test.other.settings):
        return "the plain prompt"
    return test.other.title.lower()


def _number(analysis: Analysis, names: set[str]) -> tuple[str, str]:
    """The number behind the headline: of the first set that says anything."""
    for facts in analysis.sets:
        student = analysis.best(facts.name, "distillation")
        test = _against(analysis, facts.name, student, "in_context") if student else None
        if test and facts.name in names:
            return signed(test.difference), f"distillation minus {_named(test)} on {facts.name}"
    facts = next((f for f in analysis.sets if f.name in names), analysis.sets[0])
    found, score = max(analysis.scored(facts.name), key=lambda pair: pair[1].mean)
    caption = f"highest accuracy on {facts.name}: {found.label()}"
    if not facts.written:
        caption += f"; chance is {percent(facts.chance)}"
    return percent(score.mean), caption


def _leaders(analysis: Analysis, verdicts: list[SetVerdict], at_chance: list[SetVerdict]) -> str:
    won: dict[str, list[SetVerdict]] = {}
    for verdict in verdicts:
        if verdict not in at_chance:
            best, _ = max(analysis.scored(verdict.set.name), key=lambda pair: pair[1].mean)
            won.setdefault(best.label(), []).append(verdict)
    return _listed([f"{label} scores highest on {_sets(found)}" for label, found in won.items()])


def _sizes(analysis: Analysis) -> tuple[str, ...]:
    seeds = {cell.seed for cell in analysis.study.cells}
    return (
        f"{count(len(analysis.study.cells), 'cell')}, {count(len(analysis.groups), 'setting')}, "
        f"{count(len(seeds), 'seed')}, {count(len(analysis.sets), 'set')} of evaluation rows.",
    )


def study_caveats(analysis: Analysis) -> list[str]:
    """What a reader should weigh before the headline."""
    study, found = analysis.study, []
    total = len(study.cells) + len(study.failures) + len(study.missing)
    if study.failures or study.missing:
        found.append(
            f"Of {count(total, 'cell')}, {len(study.failures)} failed and {len(study.missing)} have "
            "not run: what is said here is said of the rest."
        )
    single = sum(len(g.cells) == 1 for g in analysis.groups)
    if single:
        found.append(
            f"One seed only: {_part(single, len(analysis.groups))}. There the interval is over rows "
            "alone, and does not know how much another seed would have changed."
        )
    few = {facts.name for facts in analysis.sets} & {
        name for g in analysis.groups for name, score in g.scores.items() if score.rows < FEW_ROWS
    }
    if few:
        found.append(f"Fewer than {FEW_ROWS} rows a seed: {', '.join(sorted(few))}.")
    collapsed = sum(
        max(score.predicted.values(), default=0) > ONE_LABEL
        for g in analysis.groups
        for score in g.scores.values()
    )
    scores = sum(len(g.scores) for g in analysis.groups)
    found += list(_other_draws(analysis))
    if collapsed:
        found.append(
            f"One label is predicted on more than {percent(ONE_LABEL, 0)} of the rows in "
            f"{_part(collapsed, scores, 'score')}."
        )
    if len(analysis.groups) > len(TITLES):
        found.append(
            "The highest of many settings is chosen on the rows it is scored on: its own score is "
            "on the high side. The paired tests are corrected for their number, the scores are not."
        )
    return found


def _other_draws(analysis: Analysis) -> Iterator[str]:
    """How the plain prompt compares with other prompts of its kind, where a teacher averages several."""
    for facts in analysis.sets:
        student = analysis.best(facts.name, "distillation")
        test = _against(analysis, facts.name, student, "in_context") if student else None
        if student is None or test is None or not test.other.plain_prompt:
            continue
        averaged = [
            g.scores[facts.name].single_contexts
            for g in analysis.groups
            if g.method == "in_context"
            and facts.name in g.scores
            and all(g.settings.get(k) == test.other.settings.get(k) for k in (K, "teacher.model"))
        ]
        singles = max(averaged, key=len, default=())
        if singles:
            yield (
                f"The plain prompt on {facts.name} is one draw of demonstrations a seed, with "
                f"{percent(test.other.scores[facts.name].mean)}; {len(singles)} draws have "
                f"{percent(mean(singles))} in the mean, {percent(min(singles))} to {percent(max(singles))}."
            )
            return


def between(score: SetSummary) -> str:
    """The 95 % interval of a mean, as percentages."""
    return f"{100 * score.low:.1f}\N{EN DASH}{100 * score.high:.1f}{NBSP}%"


def signed(difference: float) -> str:
    """A difference in points, with its sign."""
    return ("+" if difference > 0 else "") + points(difference)


def p_text(p: float) -> str:
    """A p value as a sentence holds it."""
    if p < 0.001:
        return f"p{NBSP}<{NBSP}0.001"
    return f"p{NBSP}={NBSP}{p:.2g}" if p < 0.1 else f"p{NBSP}={NBSP}{p:.2f}"


def _part(some: int, total: int, noun: str = "setting") -> str:
    return f"all {count(total, noun)}" if some == total > 1 else f"{some} of {count(total, noun)}"


def _sets(verdicts: list[SetVerdict]) -> str:
    if len(verdicts) <= 2:
        return _listed([verdict.set.name for verdict in verdicts])
    return count(len(verdicts), "set")


def _names(verdicts: list[SetVerdict]) -> set[str]:
    return {verdict.set.name for verdict in verdicts}


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
