"""A judge: another model says which of two answers is better, the student's or its teacher's.

Each pair is judged in both orders (Zheng et al. 2023, arXiv:2306.05685, section 3.4: judges prefer a
place). A row is won or lost only if both orders say so; else it is a tie.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, Protocol

from jinja2 import Environment, StrictUndefined, TemplateError

from instil.errors import ConfigError, ServerError
from instil.models.generate import Decoding, generate
from instil.models.load import load
from instil.prompts.format import prompt_format
from instil.recipe.sections import Prompt
from instil.results.scores import JudgeScore
from instil.results.statistics import mean_value, proportion

AT_ONCE = 8  # requests to a server at the same time
TOKENS = 8  # tokens of a verdict
RETRIES = 5
_VERDICT = re.compile(r"\b(A|B|[Tt]ie|TIE)\b")
Verdict = Literal["A", "B", "tie"]


class Judge(Protocol):
    """Something that answers prompts."""

    name: str

    def ask(self, prompts: Sequence[str], advance: Callable[[int], None]) -> list[str]:
        """Answers each prompt.

        Args:
            prompts: The prompts.
            advance: Called with the number of prompts that were answered.
        """


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
    judge: Judge,
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
    said = [verdict(text) for text in judge.ask(prompts, advance)] if prompts else []
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


class LocalJudge:
    """A model in this process.

    Args:
        name: Hub id, local folder, or `bundled:NAME`.

    Raises:
        UnknownModelError: there is no such model.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = load(name)

    def ask(self, prompts: Sequence[str], advance: Callable[[int], None]) -> list[str]:
        """See `Judge.ask`."""
        form = prompt_format(self.model.tokenizer, Prompt(), ends=self.model.end_ids)
        made = generate(
            self.model,
            [form.prompt_ids(text) for text in prompts],
            form.ending,
            Decoding(TOKENS),
            advance=lambda rows, tokens: advance(rows),
        )
        return [form.decode(one.ids) for one in made]


class ServerJudge:
    """A model behind an OpenAI-compatible server, by the official client.

    Args:
        url: Address of the server, with `/v1` where it has it.
        model: Name of the model there.
        key_env: Environment variable with the key; the key is written nowhere.

    Raises:
        ConfigError: the client is not installed.
    """

    def __init__(self, url: str, model: str, *, key_env: str = "OPENAI_API_KEY") -> None:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ConfigError(
                "a judge on a server needs the library openai", mend="pip install 'instil[judge]'"
            ) from error
        self.name = f"{model} at {url}"
        self.model = model
        key = os.environ.get(key_env) or "none"
        self._client = OpenAI(base_url=url, api_key=key, max_retries=RETRIES, timeout=120)

    def ask(self, prompts: Sequence[str], advance: Callable[[int], None]) -> list[str]:
        """See `Judge.ask`.

        Raises:
            ServerError: the server does not answer, after some tries.
        """
        from openai import OpenAIError

        def one(prompt: str) -> str:
            made: Any = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=TOKENS,
            )
            advance(1)
            return made.choices[0].message.content or ""

        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return list(pool.map(one, prompts))
        except OpenAIError as error:
            raise ServerError(
                f"the judge does not answer: {self.name}",
                got=f"{type(error).__name__}: {error}",
                mend="check the address, the model's name and the key, then repeat the command",
            ) from error
