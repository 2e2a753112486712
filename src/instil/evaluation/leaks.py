"""Leaks: what a student says of its context, and its teacher does not.

A student may learn to repeat the context, or to speak of it ("Based on the text above"), which its
reader has never seen. Teacher and student answer the same rows, so a phrase counts only where the
student writes it more often than its teacher, clear of chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from instil.metrics.normalised import normal
from instil.results.scores import LeakedPhrase, Leaks
from instil.results.statistics import holm, mcnemar, proportion

PHRASE = 6  # words of a phrase of the context
VERBATIM = 8  # words in a row that count as repeated
SIGNIFICANT = 0.05
SHOWN = 10
GIVEAWAYS = {
    "based on the text above": r"based on the (?:\w+ )?(?:text|examples?|context|document|information) "
    r"(?:above|provided|given|you provided)",
    "the examples above": r"\b(?:examples?|rules|instructions|guidelines|text) above\b",
    "as stated above": r"\bas (?:stated|mentioned|described|shown|instructed) (?:above|in the)\b",
    "according to the rules": r"\baccording to the (?:examples?|rules|instructions|guidelines|context|"
    r"document|text|prompt)\b",
    "system prompt": r"\bsystem prompt\b",
    "the context provided": r"\b(?:provided|given) (?:context|text|document|examples?)\b"
    r"|\b(?:context|text|document|examples?) provided\b",
}
"""Name -> pattern of a phrase that speaks of the context."""
_GIVEAWAYS = {name: re.compile(pattern) for name, pattern in GIVEAWAYS.items()}


def leaks(context: str, teacher: Sequence[str], student: Sequence[str]) -> Leaks:
    """Finds the phrases of the context that the student writes more often than its teacher.

    Args:
        context: All that only the teacher reads.
        teacher: The teacher's answers.
        student: The student's answers to the same rows.
    """
    known = {name: number for number, name in enumerate(_phrases(normal(context), PHRASE))}
    long = set(_phrases(normal(context), VERBATIM))
    theirs, mine = ([_found(normal(text), known) for text in of] for of in (teacher, student))
    repeated = [
        proportion([any(p in long for p in _phrases(normal(text), VERBATIM)) for text in of])
        for of in (teacher, student)
    ]
    leaked = _leaked(theirs, mine)
    shares = [bool((own & leaked) - other) for own, other in zip(mine, theirs, strict=True)]
    return Leaks(
        share=proportion(shares),
        phrases=_shown(leaked, known, theirs, mine),
        verbatim=repeated[1],
        verbatim_teacher=repeated[0],
    )


def _phrases(text: str, length: int) -> Iterator[str]:
    words = text.split()
    for start in range(len(words) - length + 1):
        yield " ".join(words[start : start + length])


def _found(text: str, known: dict[str, int]) -> frozenset[str]:
    phrases = {phrase for phrase in _phrases(text, PHRASE) if phrase in known}
    return frozenset(phrases | {name for name, found in _GIVEAWAYS.items() if found.search(text)})


def _leaked(teacher: Sequence[frozenset[str]], student: Sequence[frozenset[str]]) -> set[str]:
    """The phrases that the student writes more often, clear of chance.

    Phrases of the same rows are one test: a long sentence has many phrases.
    """
    rows: dict[str, tuple[list[int], list[int]]] = {}
    for number, (theirs, mine) in enumerate(zip(teacher, student, strict=True)):
        for phrase in mine - theirs:
            rows.setdefault(phrase, ([], []))[0].append(number)
        for phrase in theirs - mine:
            rows.setdefault(phrase, ([], []))[1].append(number)
    more = {phrase: of for phrase, of in rows.items() if len(of[0]) > len(of[1])}
    tests = list(dict.fromkeys((tuple(of[0]), tuple(of[1])) for of in more.values()))
    corrected = holm([mcnemar(len(only), len(other)) for only, other in tests])
    clear = {test for test, p in zip(tests, corrected, strict=True) if p < SIGNIFICANT}
    return {phrase for phrase, of in more.items() if (tuple(of[0]), tuple(of[1])) in clear}


def _shown(
    leaked: set[str],
    known: dict[str, int],
    teacher: Sequence[frozenset[str]],
    student: Sequence[frozenset[str]],
) -> list[LeakedPhrase]:
    """The phrases for a reader: those that overlap in the context are one."""
    joined = list[tuple[str, int]]()  # text, and number of its last phrase in the context
    for phrase in sorted((p for p in leaked if p in known), key=known.__getitem__):
        place = known[phrase]
        if joined and joined[-1][1] == place - 1:
            joined[-1] = f"{joined[-1][0]} {phrase.split()[-1]}", place
        else:
            joined.append((phrase, place))
    texts = [text for text, _ in joined] + sorted(p for p in leaked if p not in known)
    made = []
    for text in texts:
        first = text if text in leaked else " ".join(text.split()[:PHRASE])
        made.append(
            LeakedPhrase(
                text=text,
                student=sum(first in mine for mine in student),
                teacher=sum(first in theirs for theirs in teacher),
            )
        )
    return sorted(made, key=lambda one: one.teacher - one.student)[:SHOWN]
