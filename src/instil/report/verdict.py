"""The headline of a report, and its caveats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean as mean

from instil.report.analysis import Analysis
from instil.report.groups import TITLES, Group
from instil.report.numerals import count, listed, number, percent, signed, whole_percent
from instil.report.paired import Outcome
from instil.report.read import K
from instil.report.set_verdict import (
    NOT_SOLVED,
    SetVerdict,
    Tone,
    Verdict,
    against,
    closest,
    judge_set,
    named,
    part,
)

FEW_ROWS = 100
"""With fewer rows, a Wilson interval at 50 % is wider than 19 points."""
NOTICEABLE_DRIFT = 0.1
"""Drift, in nats per token, from which a caveat is shown.

e^0.1 is about 10 % more perplexity on text from the base model.
"""
ONE_LABEL = 0.95
"""A caveat is shown if one label is predicted for more than this share of the rows."""


def judge(analysis: Analysis) -> tuple[Verdict, list[SetVerdict]]:
    """The verdict on the study, and the verdicts on its sets."""
    verdicts = [judge_set(analysis, facts) for facts in analysis.sets]
    if not verdicts:
        headline = "No cell of this study has finished."
        return Verdict("open", "Nothing to show", headline, "0", "finished cells", ()), []
    graded = [verdict for verdict in verdicts if verdict.set.graded]
    at_chance = [verdict for verdict in graded if not verdict.skill]
    if graded and len(at_chance) == len(graded):
        return _without_skill(analysis, at_chance), verdicts
    opening = next((verdict for verdict in graded or verdicts if verdict.opening), None)
    if opening and opening.opening:
        verdict = _opening(opening.set.name, opening.opening, len(verdicts), at_chance)
        return _with_the_rest(verdict, analysis), verdicts
    label, tone, headline = _headline(analysis, graded, at_chance)
    figure, caption = _figure(analysis, _names(graded) - _names(at_chance))
    return Verdict(tone, label, headline, figure, caption, _sizes(analysis)), verdicts


def _without_skill(analysis: Analysis, at_chance: list[SetVerdict]) -> Verdict:
    guessing = _guessing(at_chance)
    where = f"on {'any' if guessing.startswith('no') else 'every'} set"
    if len(at_chance) == 1:
        where = f"on {at_chance[0].set.name}"
    headline, label = f"{guessing[0].upper()}{guessing[1:]} {where}.", "Nothing above chance"
    figure, caption = _figure(analysis, set())
    if all(verdict.set.written for verdict in at_chance):
        label = "Not solved"
        headline = f"{headline} Look at fidelity and cross-entropy instead."
        figure, caption = closest(analysis) or (figure, caption)
    return Verdict("open", label, headline, figure, caption, _sizes(analysis))


def _opening(name: str, verdict: Verdict, sets: int, at_chance: list[SetVerdict]) -> Verdict:
    """The verdict on one set as the verdict on the study, with the names of the sets at chance."""
    if sets == 1:
        return verdict
    headline = f"On {name}, {verdict.headline[0].lower()}{verdict.headline[1:].rstrip('.')}"
    return replace(verdict, headline=f"{headline}{_elsewhere(at_chance)}.")


def _with_the_rest(verdict: Verdict, analysis: Analysis) -> Verdict:
    """Adds how much of everything else the only student keeps, if drift was measured."""
    found = analysis.comparison
    same = found.student.same_top if found else None
    if found is None or same is None:
        return verdict
    evidence = (
        f"Everything else: at {percent(same)} of the positions of unrelated text, the likeliest "
        f"next token is the one of the model without training (drift {number(found.student.drift or 0)} "
        "nats per token)."
    )
    rest = f"It keeps {whole_percent(same)} of everything else."
    if not verdict.headline.startswith("The student "):
        rest = rest.replace("It", "The student", 1)
    return replace(verdict, rest=rest, evidence=(*verdict.evidence, evidence))


def _elsewhere(at_chance: list[SetVerdict]) -> str:
    return f"; on {_sets(at_chance)} {_guessing(at_chance)}" if at_chance else ""


def _headline(
    analysis: Analysis, verdicts: list[SetVerdict], at_chance: list[SetVerdict]
) -> tuple[str, Tone, str]:
    by_outcome: dict[Outcome, list[SetVerdict]] = {"better": [], "worse": [], "level": []}
    rival = ""
    for verdict in verdicts:
        student = analysis.best(verdict.set.name, "distillation")
        test = against(analysis, verdict.set.name, student, "in_context") if student else None
        if test and verdict not in at_chance:
            by_outcome[test.outcome].append(verdict)
            rival = named(test)
    if not any(by_outcome.values()):
        leaders = _leaders(analysis, verdicts, at_chance)
        return "Scores only", "open", f"{leaders}{_elsewhere(at_chance)}."
    words: dict[Outcome, str] = {
        "better": f"better than {rival}",
        "worse": f"worse than {rival}",
        "level": f"not significantly different from {rival}",
    }
    found = [f"{words[o]} on {_sets(by_outcome[o])}" for o in words if by_outcome[o]]
    tone: Tone = "open"
    if by_outcome["better"] and not by_outcome["worse"]:
        tone = "good"
    elif by_outcome["worse"] and not by_outcome["better"]:
        tone = "short"
    label = {"good": "Better", "short": "Worse", "open": "Mixed"}[tone]
    if not by_outcome["better"] and not by_outcome["worse"]:
        label = "No significant difference"
    return label, tone, f"Distillation is {listed(found)}{_elsewhere(at_chance)}."


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


def _figure(analysis: Analysis, names: set[str]) -> tuple[str, str]:
    """The number beside the headline, and its caption."""
    for facts in analysis.sets:
        student = analysis.best(facts.name, "distillation")
        test = against(analysis, facts.name, student, "in_context") if student else None
        if test and facts.name in names:
            return signed(test.difference), f"distillation minus {named(test)} on {facts.name}"
    graded = [facts for facts in analysis.sets if facts.graded]
    facts = next((f for f in graded if f.name in names), graded[0])
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
    return listed(
        [f"{label} has the highest accuracy on {_sets(found)}" for label, found in won.items()]
    )


def _sizes(analysis: Analysis) -> tuple[str, ...]:
    seeds = {cell.seed for cell in analysis.study.cells}
    return (
        f"{count(len(analysis.study.finished), 'cell')}, {count(len(analysis.groups), 'setting')}, "
        f"{count(len(seeds), 'seed')}, {count(len(analysis.sets), 'evaluation set')}.",
    )


def _sets(verdicts: list[SetVerdict]) -> str:
    if len(verdicts) <= 2:
        return listed([verdict.set.name for verdict in verdicts])
    return count(len(verdicts), "set")


def _names(verdicts: list[SetVerdict]) -> set[str]:
    return {verdict.set.name for verdict in verdicts}


def caveats(analysis: Analysis) -> list[str]:
    """Doubts about the results that a reader should know."""
    return [
        *_of_the_rows(analysis),
        *_other_contexts(analysis),
        *_of_the_students(analysis),
        *_of_the_choice(analysis),
    ]


def _of_the_rows(analysis: Analysis) -> Iterator[str]:
    study = analysis.study
    if study.failures or study.missing:
        total = len(study.finished) + len(study.failures) + len(study.missing)
        yield (
            f"Of {count(total, 'cell')}, {len(study.failures)} failed and {len(study.missing)} have "
            "not run. This report is about the other cells only."
        )
    alone = sum(len(g.cells) == 1 for g in analysis.groups)
    if alone and not study.single:
        yield (
            f"Only one seed: {part(alone, len(analysis.groups))}. Their intervals are over rows and do "
            "not include the variation between seeds."
        )
    few: dict[str, int] = {}
    for group in analysis.groups:
        for name, score in group.scores.items():
            if score.rows < FEW_ROWS:
                few[name] = min(score.rows, few.get(name, FEW_ROWS))
    if few:
        sizes = (f"{name} has only {count(rows, 'row')}" for name, rows in sorted(few.items()))
        yield (
            f"Fewer than {FEW_ROWS} rows per seed: {', '.join(sizes)}. "
            "More rows would make the intervals narrower."
        )


def _other_contexts(analysis: Analysis) -> Iterator[str]:
    """How the plain prompt compares with similar prompts, if a teacher averages several."""
    for facts in analysis.sets:
        student = analysis.best(facts.name, "distillation")
        test = against(analysis, facts.name, student, "in_context") if student else None
        if test is None or not test.other.plain_prompt:
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
                f"The plain prompt on {facts.name} has one set of demonstrations per seed, and an "
                f"accuracy of {percent(test.other.scores[facts.name].mean)}. Over {len(singles)} such "
                f"sets, the mean accuracy is {percent(mean(singles))}, from {percent(min(singles))} to "
                f"{percent(max(singles))}."
            )
            return


def _of_the_students(analysis: Analysis) -> Iterator[str]:
    """Problems of the students; if several have the same problem, the worst is named."""
    for facts in analysis.sets:
        student, zero = (analysis.best(facts.name, m) for m in ("distillation", "zero_shot"))
        kl = [g.scores[facts.name].kl if g else None for g in (zero, student)]
        if student and facts.graded and kl[0] is not None and kl[1] is not None and kl[1] > kl[0]:
            unit = "nats per token" if facts.written else "nats"
            yield (
                f"Training increased the KL to the teacher from {number(kl[0])} to {number(kl[1])} "
                f"{unit} on {facts.name}. So the student did not learn the teacher’s predictions, "
                "even if its accuracy is high."
            )
    far = [(g.drift, g) for g in analysis.students if (g.drift or 0) > NOTICEABLE_DRIFT]
    if far:
        drift, student = max(far, key=lambda pair: pair[0] or 0)
        yield (
            f"{_called(analysis, student, len(far))} drifted {number(drift or 0)} nats per token on "
            "unrelated text. Test it on the other tasks that you want to use it for."
        )
    cut = [(g.truncated, g) for g in analysis.students if g.truncated]
    if cut:
        completions, student = max(cut, key=lambda pair: pair[0])
        rows = max(cell.training.rows for cell in student.cells if cell.training)
        share = f" ({whole_percent(completions / rows)} of the training rows)"
        yield (
            f"{_called(analysis, student, len(cut))} was trained on "
            f"{count(completions, 'completion')} cut at max_new_tokens"
            f"{share if rows >= completions else ''}. These do not show how an answer ends."
        )
    found = analysis.comparison
    if found and found.seconds_saved is not None and found.break_even is None:
        yield "A query saves no time on this machine, so training never pays back its cost."


def _called(analysis: Analysis, student: Group, settings: int) -> str:
    if len(analysis.students) == 1:
        return "The student"
    most = f" (the worst of {count(settings, 'setting')})" if settings > 1 else ""
    return f"{student.label()}{most}"


def _of_the_choice(analysis: Analysis) -> Iterator[str]:
    scores = [score for g in analysis.groups for score in g.scores.values()]
    collapsed = sum(max(score.predicted.values(), default=0) > ONE_LABEL for score in scores)
    if collapsed:
        yield (
            f"One label is predicted for more than {percent(ONE_LABEL, 0)} of the rows in "
            f"{part(collapsed, len(scores), 'score')}."
        )
    if len(analysis.groups) > len(TITLES):
        yield (
            "The best of many settings is chosen by its score on the evaluation rows, so this score is "
            "probably too high. The p values are corrected for the number of tests, the scores are not."
        )
