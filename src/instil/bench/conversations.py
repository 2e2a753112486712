"""The users of five products: conversations made from parts, with the noise of real logs.

Each prompt is a YAML file in `system_prompts/`. A seed gives the same conversations on every machine.
The held-out ones are made from parts that the others never use.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import yaml

from instil.tasks.conversation import Message

Split = Literal["learn", "held_out"]

NAMES = ("support", "extract", "triage", "style", "agent")
TURNS = {1: 74, 2: 13, 3: 5, 4: 3, 5: 2, 6: 1, 7: 1, 8: 1}
"""Number of a user's messages -> weight."""
FOREIGN, ATTACK = 0.1, 0.08
"""Shares of messages in another language, and of attempts to make the assistant break its rules."""
TYPO, LOWER, CUT = 0.25, 0.2, 0.06
"""Shares of messages with a typing error, without capitals and marks, and cut off."""
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Product:
    """A system prompt, its example turns, and the parts of its users' messages.

    Attributes:
        name: Name of its file.
        title: What it is.
        system: The system prompt.
        examples: The turns that every conversation begins with.
        max_new_tokens: Most tokens of an answer.
        rules: What an answer must obey.
        parts: Kind of a message -> split -> templates; and the slots of the templates.
    """

    name: str
    title: str
    system: str
    examples: list[Message]
    max_new_tokens: int
    rules: list[dict[str, Any]]
    parts: Mapping[str, Any]

    @classmethod
    def read(cls, name: str) -> Product:
        """Reads a shipped prompt."""
        path = files("instil") / "bench" / "system_prompts" / f"{name}.yaml"
        made = yaml.safe_load(path.read_text(encoding="utf-8"))
        examples = [
            Message(role, str(shot[role]))
            for shot in made["examples"]
            for role in ("user", "assistant")
        ]
        return cls(
            name,
            made["title"],
            made["system"].strip(),
            examples,
            made["max_new_tokens"],
            made["rules"],
            made,
        )

    @property
    def head(self) -> tuple[Message, ...]:
        """The messages that every conversation begins with."""
        return (Message("system", self.system), *self.examples)

    def users(self, count: int, split: Split, *, seed: int = 0) -> list[list[str]]:
        """The messages of some users, one list for each conversation.

        Args:
            count: Number of conversations. No two have the same messages.
            split: Which parts are used.
            seed: Seed of all that is drawn.
        """
        rng = random.Random(f"{self.name} {split} {seed}")
        made: dict[tuple[str, ...], None] = {}
        while len(made) < count:
            turns = rng.choices([*TURNS], [*TURNS.values()])[0]
            said = [self._message(rng, split, first=turn == 0) for turn in range(turns)]
            made.setdefault(tuple(said))
        return [list(said) for said in made]

    def _message(self, rng: random.Random, split: Split, *, first: bool) -> str:
        kind, drawn = "openings" if first else "follow_ups", rng.random()
        if drawn < FOREIGN:
            kind = "foreign"
        elif drawn < FOREIGN + ATTACK:
            kind = "attacks"
        text = self._filled(rng.choice(self.parts[kind][split]), rng, split)
        return text if text.startswith("RESULT") else _noisy(text, rng)

    def _filled(self, template: str, rng: random.Random, split: Split) -> str:
        def value(found: re.Match[str]) -> str:
            known = self.parts["slots"][found[1]][split]
            if known == "amount":
                return str(rng.randint(2, 60))
            if isinstance(known, str):  # a code, with the letters before its digits
                return known.removeprefix("code ") + str(rng.randint(1000, 9999))
            return str(rng.choice(known))

        return _SLOT.sub(value, template)


def _noisy(text: str, rng: random.Random) -> str:
    """A text as it is typed in a hurry."""
    if rng.random() < LOWER:
        text = text.lower().rstrip(".?!")
    words = text.split(" ")
    if rng.random() < TYPO:
        place = rng.randrange(len(words))
        word = words[place]
        if len(word) > 3 and word.isalpha():  # numbers and names of tools stay
            at = rng.randrange(1, len(word) - 2)
            words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if len(words) > 4 and rng.random() < CUT:
        words = words[: len(words) * 2 // 3]
    return " ".join(words)
