"""A judge: another model says which of two answers is better, the student's or its teacher's.

Each pair is judged in both orders (Zheng et al. 2023, arXiv:2306.05685, section 3.4: judges prefer a
place). A row is won or lost only if both orders say so; else it is a tie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from jinja2 import Environment, StrictUndefined, TemplateError

from instil.engines.chat import Chat
from instil.errors import ConfigError
from instil.results.scores import JudgeScore
from instil.results.statistics import mean_value, proportion

TOKENS = 8  # tokens of a verdict
_VERDICT = re.compile(r"\b(A|B|[Tt]ie|TIE)\b")
Verdict = Literal["A", "B", "tie"]


@dataclass(frozen=True)
class Pair:
    """Two answers to the same question.

    Attributes:
        chat: What was said before.
        teacher: The teacher's answer.
        student: The student's answer.
    """

    chat: str
    teacher: str
    student: str


def shipped_prompt() -> str:
    """The template of a judge's prompt that comes with the package."""
    return (files("instil.evaluation") / "judge.md.j2").read_text(encoding="utf-8")


def judge_pairs(
    judge: Chat,
    pairs: Sequence[Pair],
    *,
    template: str,
    context: str | None,
    advance: Callable[[int], None],
) -> JudgeScore:
    """Lets a judge compare students with their teacher.

    Args:
        judge: The judge.
        pairs: The answers. Equal answers are ties, without asking.
        template: Jinja2 template of the prompt, with `context`, `chat`, `a` and `b`.
        context: What the teacher reads; None: the judge does not see it.
        advance: Called with the number of pairs that were judged in one order.

    Raises:
        ConfigError: the template cannot be rendered.
        ServerError: the server does not answer.
    """
    different = [pair for pair in pairs if pair.teacher.strip() != pair.student.strip()]
    prompts = [
        _prompt(template, context, pair.chat, *answers)
        for pair in different
        for answers in ((pair.student, pair.teacher), (pair.teacher, pair.student))
    ]
    said = (
        [verdict(text) for text in judge.ask(prompts, advance, max_tokens=TOKENS)]
        if prompts
        else []
    )
    values, agreed, unread = list[float](), list[bool](), 0
    for first, second in zip(said[::2], said[1::2], strict=True):
        unread += (first is None) + (second is None)
        orders = (
            {"A": 1.0, "B": 0.0}.get(first or "", 0.5),
            {"A": 0.0, "B": 1.0}.get(second or "", 0.5),
        )
        agreed.append(orders[0] == orders[1])
        values.append(orders[0] if orders[0] == orders[1] else 0.5)
    ties = len(pairs) - len(different)
    values += [0.5] * ties
    return JudgeScore(
        judge=judge.name,
        rows=len(pairs),
        wins=values.count(1.0),
        losses=values.count(0.0),
        equal=ties,
        unread=unread,
        win_rate=mean_value(values),
        same_in_both_orders=proportion(agreed) if agreed else None,
    )


def verdict(text: str) -> Verdict | None:
    """What a judge says; None if it says something else."""
    found = _VERDICT.findall(text)
    if not found:
        return None
    return "tie" if found[-1].lower() == "tie" else found[-1]


def _prompt(template: str, context: str | None, chat: str, a: str, b: str) -> str:
    jinja = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False)
    try:
        return jinja.from_string(template).render(context=context, chat=chat, a=a, b=b)
    except TemplateError as error:
        raise ConfigError(
            "the judge's prompt cannot be rendered",
            got=str(error),
            allowed="a Jinja2 template with context, chat, a and b",
        ) from error
