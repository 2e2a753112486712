"""Rules that a model proposes for a prompt. Each is read as a rule; the others become comments."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from instil.engines.chat import Chat
from instil.errors import ConfigError
from instil.metrics.draft import HEADING, shown
from instil.metrics.registry import PYTHON
from instil.metrics.rules import rules_of

TOKENS = 1500
_FENCE = re.compile(r"```(?:ya?ml)?\s*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def drafted_by(chat: Chat, prompt: str, advance: Callable[[int], None] = lambda count: None) -> str:
    """The YAML text of a draft that a model writes.

    Args:
        chat: The model.
        prompt: A system prompt.
        advance: Called when the model has answered.

    Raises:
        ServerError: the server does not answer.
    """
    template = (files("instil.evaluation") / "draft.md.j2").read_text(encoding="utf-8")
    asked = Environment(undefined=StrictUndefined, autoescape=False).from_string(template)
    (said,) = chat.ask([asked.render(prompt=prompt)], advance, max_tokens=TOKENS)
    good: list[str] = []
    bad: list[str] = []
    names = set[str]()
    for given in _items(said):
        try:
            if PYTHON in str(given):  # a model must not choose what is imported
                raise ConfigError("a function of Python")
            (rule,) = rules_of([given])
            if rule.name in names:
                raise ConfigError("another rule has this name")
        except ConfigError as error:
            bad.append(f"#   {' '.join(str(given).split())}  ({error.what})\n")
        else:
            names.add(rule.name)
            good.append(shown(given))
    left = f"# What {chat.name} also wrote, and is no rule:\n{''.join(bad)}" if bad else ""
    none = f"# {chat.name} proposed no rule that can be read.\n"
    return f"{HEADING}# Proposed by {chat.name}.\n{''.join(good) or none}{left}"


def _items(said: str) -> list[Any]:
    """The items of a list in a text that a model wrote. A line that is no YAML costs only itself."""
    found = _FENCE.search(said)
    text = found[1] if found else said
    try:
        whole = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        whole = None
    if isinstance(whole, dict) and "rules" in whole:
        whole = whole["rules"]
    if isinstance(whole, list):
        return whole
    items: list[Any] = []
    for line in text.splitlines():
        if not line.lstrip().startswith("- "):
            continue
        try:
            read = yaml.safe_load(line.strip())
        except (yaml.YAMLError, ValueError):
            items.append(line.strip())
        else:
            items += read if isinstance(read, list) else [line.strip()]
    return items
