"""The sentence that a report opens with, and what to watch before it is believed.

The rule throughout: a headline never says more than the intervals do. Overlapping intervals do not
prove two methods equal, so the wording is that the rows do not separate them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from instil.report.numerals import count, interval, number, percent, points, whole_percent
from instil.results.schema import Fidelity, Proportion, Results

Tone = Literal["good", "short", "open"]

KEPT = 0.9
"""From this share on, of the gain or of the divergence, the headline stops saying "falls short"."""
FEW_ROWS = 100
"""Below this, a Wilson interval at one half is wider than 19 points."""
NOTICEABLE_DRIFT = 0.1
"""Nats a token; e to this power is about a tenth more perplexity on text the base would write."""
NO_DIVERGENCE = 1e-3
"""Nats a token, below which a context changes too little for a share of it to mean anything."""


@dataclass(frozen=True)
class Verdict:
    """One plain sentence, the number behind it, and the evidence in a second breath."""

    tone: Tone
    label: str
    headline: str
    figure: str
    figure_caption: str
    evidence: tuple[str, ...]


def judge(results: Results) -> Verdict:
    """Judges by accuracy where every method has one, and by fidelity otherwise."""
    found = {name: method.accuracy for name, method in results.methods.items()}
    zero, context, student = (found.get(m) for m in ("zero_shot", "in_context", "distilled"))
    if zero is None or context is None or student is None:
        return _by_fidelity(results.fidelity)
    return _by_accuracy(results.recovery, zero, context, student)


def share_closed(fidelity: Fidelity) -> float | None:
    """The share of the divergence from the teacher that training removed; None without one."""
    before, after = fidelity.kl_to_teacher.zero_shot, fidelity.kl_to_teacher.distilled
    return 1 - after / before if before >= NO_DIVERGENCE else None


def _by_accuracy(
    recovery: float | None, zero: Proportion, context: Proportion, student: Proportion
) -> Verdict:
    gain = context.value - zero.value
    scores = (
        f"On {count(student.n, 'held-out row')}: zero-shot {_score(zero)}, "
        f"in-context {_score(context)}, distilled {_score(student)}."
    )
    if recovery is None or gain <= 0:
        verb = "lowers accuracy" if context.high < zero.low else "gains nothing"
        if gain > 0:
            verb = "gains nothing measurable"
        return Verdict(
            tone="open",
            label="Nothing to recover",
            headline=f"The prompt {verb} on these rows, so there is nothing to recover.",
            figure=_signed(gain),
            figure_caption="in-context accuracy minus zero-shot accuracy",
            evidence=(scores, _against_zero_shot(student, zero)),
        )
    tone, label, headline = _kept(recovery, gain, zero, context, student)
    return Verdict(
        tone=tone,
        label=label,
        headline=headline,
        figure=whole_percent(recovery),
        figure_caption="recovery: (distilled \N{MINUS SIGN} zero-shot) / "
        "(in-context \N{MINUS SIGN} zero-shot)",
        evidence=(scores, _against_prompt(student, context), *_doubt(zero, context)),
    )


def _kept(
    recovery: float, gain: float, zero: Proportion, context: Proportion, student: Proportion
) -> tuple[Tone, str, str]:
    rows = count(student.n, "row")
    if _overlap(zero, context):
        return (
            "open",
            "Undecided",
            f"Undecided on {rows}: the prompt\u2019s own gain of {points(gain)} is not clear of "
            "chance.",
        )
    if student.high < zero.low:
        return "short", "Falls short", "The student is worse than the model was without training."
    if recovery <= 0:
        headline = "The student falls short: it keeps none of what the prompt gains."
        return "short", "Falls short", headline
    kept = whole_percent(recovery) if recovery < 1 else f"all ({whole_percent(recovery)})"
    if recovery < KEPT:
        return (
            "short",
            "Falls short",
            f"The student falls short: it keeps {kept} of what the prompt gains.",
        )
    if _overlap(student, zero):
        return (
            "open",
            "Undecided",
            f"The student keeps {kept} of what the prompt gains, but the intervals on {rows} "
            "do not separate it from zero-shot.",
        )
    return "good", "Recovered", f"The student keeps {kept} of what the prompt gains."


def _by_fidelity(fidelity: Fidelity) -> Verdict:
    kl, agreement = fidelity.kl_to_teacher, fidelity.top1_agreement
    closed = share_closed(fidelity)
    tone: Tone
    if closed is None:
        tone, label = "open", "Nothing to recover"
        headline = (
            "The context hardly changes what the model predicts, so there is nothing to recover."
        )
    elif closed >= KEPT:
        tone, label = "good", "Close to the teacher"
        headline = (
            "The student predicts nearly what the teacher predicts: training removes "
            f"{whole_percent(closed)} of the divergence."
        )
    elif closed > 0:
        tone, label = "short", "Falls short"
        headline = (
            f"The student falls short: training removes {whole_percent(closed)} of its divergence "
            "from the teacher."
        )
    else:
        tone, label = "short", "Falls short"
        headline = "The student falls short: training moved it away from the teacher."
    return Verdict(
        tone=tone,
        label=label,
        headline=headline,
        figure=number(kl.distilled) if closed is None else whole_percent(closed),
        figure_caption="KL to the teacher, nats a token"
        if closed is None
        else "of the KL to the teacher removed by training",
        evidence=(
            "These rows have no gold outputs, so nothing here says whether an answer is right: "
            "this report is about fidelity to the teacher.",
            f"On {count(fidelity.n_tokens, 'held-out token')}: KL to the teacher "
            f"{number(kl.zero_shot)} before and {number(kl.distilled)} after training, in nats a "
            f"token; top-1 agreement {percent(agreement.zero_shot)} before and "
            f"{percent(agreement.distilled)} after.",
        ),
    )


def caveats(results: Results) -> list[str]:
    """What a reader should weigh before the headline, most doubtful first."""
    found = []
    accuracy = results.methods["distilled"].accuracy if "distilled" in results.methods else None
    if accuracy is not None and accuracy.n < FEW_ROWS:
        found.append(
            f"The evaluation has only {count(accuracy.n, 'row')}: the student\u2019s interval is "
            f"{points(accuracy.high - accuracy.low)} wide. More rows would narrow it."
        )
    kl = results.fidelity.kl_to_teacher
    if accuracy is not None and kl.distilled > kl.zero_shot:
        found.append(
            f"Training raised the KL to the teacher from {number(kl.zero_shot)} to "
            f"{number(kl.distilled)} nats a token: the student did not learn the teacher\u2019s "
            "predictions, whatever it scores."
        )
    if results.drift.kl_to_base > NOTICEABLE_DRIFT:
        found.append(
            f"The student drifted {number(results.drift.kl_to_base)} nats a token on unrelated "
            "text. Try it on whatever else you will ask of it."
        )
    cut, rows = results.training.truncated_completions, results.training.rows
    if cut:
        of_rows = f" ({whole_percent(cut / rows)} of the training rows)" if rows >= cut else ""
        found.append(
            f"The student was trained on {count(cut, 'completion')} cut at max_new_tokens"
            f"{of_rows}: there it was not shown how an answer ends."
        )
    if results.cost.break_even_queries is None:
        found.append("A query saves no time on this machine, so the training is never paid back.")
    return found


def _against_prompt(student: Proportion, context: Proportion) -> str:
    if _overlap(student, context):
        return (
            "The intervals of distilled and in-context overlap, so "
            f"{count(student.n, 'row')} cannot clearly separate the two."
        )
    side = "below" if student.value < context.value else "above"
    return f"The interval of distilled lies wholly {side} that of in-context."


def _doubt(zero: Proportion, context: Proportion) -> list[str]:
    if not _overlap(zero, context):
        return []
    return [
        "The intervals of in-context and zero-shot overlap: a share of so uncertain a gain says "
        "little."
    ]


def _against_zero_shot(student: Proportion, zero: Proportion) -> str:
    if _overlap(student, zero):
        return "The intervals of distilled and zero-shot overlap."
    side = "below" if student.value < zero.value else "above"
    return f"The interval of distilled lies wholly {side} that of zero-shot."


def _overlap(one: Proportion, other: Proportion) -> bool:
    return one.low <= other.high and other.low <= one.high


def _score(accuracy: Proportion) -> str:
    return f"{percent(accuracy.value)} ({interval(accuracy)})"


def _signed(difference: float) -> str:
    return ("+" if difference > 0 else "") + points(difference)
