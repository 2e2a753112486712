"""Drafts rules from the sentences of a prompt, where a sentence has a usual form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

HEADING = """\
# A draft, made from the sentences of a prompt. Read each rule, and try all of them on logged answers:
#   instil rules check THIS_FILE LOGS
"""
_QUOTED = r"[\"“'‘`]([^\"”'’`\n]+)[\"”'’`]"
_QUOTES = re.compile(r"[\"“`]([^\"”`\n]+)[\"”`]")
_SENTENCE = re.compile(r"(?<=[.!?])[\"”]?\s+(?=[A-Z\"“])|\n\s*\n|\n\s*(?:[-*•]|\d+[.)])\s+")
_NUMBERS = {
    word: number
    for number, word in enumerate(
        [
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ],
        1,
    )
}
_NUMBER = rf"(\d+|{'|'.join(_NUMBERS)})"
_LANGUAGES = {
    "english": "en",
    "german": "de",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "portuguese": "pt",
    "dutch": "nl",
    "polish": "pl",
    "russian": "ru",
    "japanese": "ja",
    "chinese": "zh",
}
_CONDITION = re.compile(r"(?i)\b(?:if|when|unless|whenever|in case|only for)\b")


def _count(word: str) -> int:
    return _NUMBERS.get(word.lower()) or int(word)


def _any_of(sentence: str, found: re.Match[str]) -> str | None:
    words = _QUOTES.findall(sentence[found.start() :])
    return rf"(?i)(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)" if words else None


_FORMS: tuple[tuple[str, str, Callable[[str, re.Match[str]], Any]], ...] = (
    (rf"(?i)\b(?:begin|start|open)s?\b[^.\"“]* with {_QUOTED}", "starts_with", lambda s, m: m[1]),
    (
        rf"(?i)\b(?:end|close|sign)s?\b[^.\"“]* (?:with|as) {_QUOTED}",
        "ends_with",
        lambda s, m: m[1],
    ),
    (
        rf"(?i)\b(?:at most|no more than|not more than|maximum(?: of)?|up to|under|fewer than) {_NUMBER} words",
        "max_words",
        lambda s, m: _count(m[1]),
    ),
    (rf"(?i)\bat least {_NUMBER} words", "min_words", lambda s, m: _count(m[1])),
    (
        rf"(?i)\b(?:at most|no more than|not more than|up to) {_NUMBER} sentences",
        "max_sentences",
        lambda s, m: _count(m[1]),
    ),
    (
        r"(?i)\b(?:never|do not|don't|avoid|must not)\b[^.\"“]*\b(?:words?|phrases?|say|write|use|using|saying)\b",
        "forbid_regex",
        _any_of,
    ),
    (
        rf"(?i)\b(?:answer|write|reply|respond|speak)\b[^.]*\bin ({'|'.join(_LANGUAGES)})\b",
        "language",
        lambda s, m: _LANGUAGES[m[1].lower()],
    ),
    (
        r"(?i)\b(?:answer|reply|respond|return|output|write)\b[^.]*\b(?:valid |only )?JSON\b",
        "json_valid",
        lambda s, m: True,
    ),
    (
        r"(?i)\b(?:no|without|never use|do not use|don't use|use no)\b[^.]*\blinks?\b",
        "forbid_regex",
        lambda s, m: r"https?://|www\.",
    ),
    (
        r"(?i)\b(?:no|without|never use|do not use|don't use|use no)\b[^.]*\bemojis?\b",
        "forbid_regex",
        lambda s, m: "[\U0001f300-\U0001faff\u2600-\u27bf]",
    ),
    (
        r"(?i)\b(?:no|without|never use|do not use|don't use|use no)\b[^.]*\b(?:bold|markdown)\b",
        "forbid_regex",
        lambda s, m: r"\*\*|^#+ ",
    ),
)


def drafted(prompt: str) -> str:
    """The YAML text of a draft.

    Args:
        prompt: A system prompt.
    """
    rules: list[str] = []
    known: list[dict[str, Any]] = []
    others: list[str] = []
    for sentence in sentences(prompt):
        found = [*_rules_of(sentence)]
        if found and _CONDITION.search(sentence):
            others.append(f"{sentence}  (it has a condition: write it with `when`)")
        elif found:
            rules.append(f"# {sentence}\n")
            rules += [shown(rule) for rule in found if rule not in known]
            known += found
        else:
            others.append(sentence)
    listed = "".join(f"#   {one}\n" for one in others)
    left = f"# No rule was found for these sentences:\n{listed}" if others else ""
    return f"{HEADING}{''.join(rules) or '# No sentence has a form that is known.' + chr(10)}{left}"


def sentences(text: str) -> list[str]:
    """The sentences of a text, each in one line."""
    made = (" ".join(part.split()) for part in _SENTENCE.split(text))
    return [re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", one) for one in made if one]


def _rules_of(sentence: str) -> Iterator[dict[str, Any]]:
    for pattern, metric, argument in _FORMS:
        if found := re.search(pattern, sentence):
            value = argument(sentence, found)
            if value is not None:
                yield {"name": _name(metric, value), metric: value}


def _name(metric: str, value: Any) -> str:
    text = f"{metric.replace('_', ' ')} {value}" if not isinstance(value, bool) else metric
    return text if len(text) <= 40 else f"{text[:39]}…"


def shown(rule: dict[str, Any]) -> str:
    """A rule as YAML, in one line."""
    text = yaml.safe_dump([rule], default_flow_style=None, allow_unicode=True, width=1000)
    return text if text.endswith("\n") else f"{text}\n"
