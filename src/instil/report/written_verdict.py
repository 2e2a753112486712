"""What a study's report says of written answers: whether any method solves them, and how close they are.

Written answers have no chance and no majority label. Where next to none is right, accuracy tells
little, and the distributions themselves say what was learnt: the KL to the teacher and the
cross-entropy of the gold answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from instil.report.analysis import Analysis, SetFacts
from instil.report.groups import SOLVED, Group, SetSummary
from instil.report.numerals import count, number, percent

NOT_SOLVED = "Not solved"


def floor(facts: SetFacts) -> str:
    """What accuracy on a set has to clear before it says anything."""
    return percent(SOLVED, 0) if facts.written else "chance"


def unsolved(facts: SetFacts, scored: Sequence[tuple[Group, SetSummary]], *, sure: bool) -> str:
    """A sentence for a set of which no method is shown to solve more than `SOLVED`.

    Args:
        facts: The set.
        scored: The groups with their scores on it.
        sure: Whether all intervals are so short that they leave no room for skill.
    """
    best, score = max(scored, key=lambda pair: pair[1].mean)
    highest = f"the highest accuracy is {percent(score.mean)} ({best.label()})"
    if sure:
        return f"No method solves {facts.name}: {highest}, and all intervals are near 0."
    unclear = sum(score.standing == "unclear" for _, score in scored)
    return (
        f"No method is shown to solve {facts.name}: {highest}, and no interval lies wholly above "
        f"{floor(facts)}. {unclear} of {count(len(scored), 'interval')} "
        f"{'leaves' if unclear == 1 else 'leave'} room for skill."
    )


def closeness(analysis: Analysis, facts: SetFacts) -> Iterator[str]:
    """Sentences on the distributions: how close to the teacher, how probable the gold answers."""
    student, zero = (analysis.best(facts.name, m) for m in ("distillation", "zero_shot"))
    kl = [f.scores[facts.name].kl for f in (student, zero) if f]
    own = kl[0] if student else None
    if student and own is not None:
        said = f"KL to the teacher is {number(own)} nats a token for {_inline(student)}"
        before = kl[1] if zero else None
        yield said + (f", and {number(before)} for zero-shot." if before is not None else ".")
    entropies = [
        (score.cross_entropy, found)
        for found, score in analysis.scored(facts.name)
        if score.cross_entropy is not None
    ]
    if len(entropies) > 1:
        lowest, found = min(entropies, key=lambda pair: pair[0])
        said = f"The gold answers are most probable for {_inline(found)}: cross-entropy {number(lowest)} nats a token"
        first = next((value for value, f in entropies if f is zero), None)
        if first is None or found is zero:
            yield f"{said}."
        else:
            yield f"{said}, against {number(first)} for zero-shot."


def closest(analysis: Analysis) -> tuple[str, str] | None:
    """The number behind a headline that accuracy cannot give: the student's KL to its teacher."""
    for facts in analysis.sets:
        student = analysis.best(facts.name, "distillation")
        kl = student.scores[facts.name].kl if student else None
        if student and kl is not None:
            return number(
                kl
            ), f"nats a token: KL to the teacher on {facts.name}, {_inline(student)}"
    return None


def _inline(group: Group) -> str:
    label = group.label()
    return label[0].lower() + label[1:]
