"""Rules that an answer must obey, read from a YAML file.

Each rule is a metric with its argument, and perhaps a condition:

```yaml
- {name: greeting, starts_with: "Hi there!"}
- {name: short, max_words: 60}
- {name: care team, contains: our care team, when: {query_regex: "(?i)smoke|fire"}}
- {name: stays on topic, refuse_when: {query_regex: "(?i)poem|joke"}}
```
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from instil.errors import ConfigError, DataFileError, DataFormatError, did_you_mean
from instil.metrics.arguments import pattern
from instil.metrics.registry import METRICS, Metric, find

_NAME, _WHEN, _SUFFIX = "name", "when", "_when"
_CONDITIONS = ("query_regex", "query_not_regex", "chat_regex", "chat_not_regex", "turn")


@dataclass(frozen=True)
class Asked:
    """What was asked before an answer.

    Attributes:
        query: The user's last message.
        chat: All that was said before the answer, with the query.
        turn: Number of the answer in its conversation, from 1.
    """

    query: str
    chat: str
    turn: int = 1


@dataclass(frozen=True)
class When:
    """When a rule applies. All that is set must hold.

    Attributes:
        patterns: What must be found, or must not be: (where, pattern, whether it must be found).
        turn: Only this answer of a conversation, the `first` one, or all `later` ones.
    """

    patterns: tuple[tuple[Literal["query", "chat"], re.Pattern[str], bool], ...] = ()
    turn: int | Literal["first", "later"] | None = None

    def applies(self, asked: Asked) -> bool:
        """Whether a rule applies to an answer."""
        if self.turn == "later" and asked.turn == 1:
            return False
        number = 1 if self.turn == "first" else self.turn
        if isinstance(number, int) and asked.turn != number:
            return False
        texts = {"query": asked.query, "chat": asked.chat}
        return all(
            (pattern.search(texts[where]) is not None) == wanted
            for where, pattern, wanted in self.patterns
        )


@dataclass(frozen=True)
class Rule:
    """Something that an answer must obey.

    Attributes:
        name: Its name.
        metric: Judges an answer by yes or no.
        argument: What the metric compares with.
        when: When it applies; always by default.
        text: The rule as it was written, for a reader.
    """

    name: str
    metric: Metric
    argument: Any
    when: When = When()
    text: str = ""

    def kept(self, written: str, asked: Asked, *, where: str = "") -> bool | None:
        """Whether an answer obeys the rule; None if the rule does not apply.

        Args:
            written: The answer.
            asked: What was asked.
            where: The row, for error messages.

        Raises:
            ConfigError: the metric fails, or gives a number in place of yes or no.
        """
        if not self.when.applies(asked):
            return None
        found = self.metric.value(written, self.argument, where=where)
        if not isinstance(found, bool):
            raise ConfigError(
                f"the rule {self.name!r}: the metric {self.metric.name!r} gives a number",
                got=f"{found:g}",
                allowed="a metric that says yes or no",
            )
        return found


def read_rules(path: Path) -> list[Rule]:
    """Reads a file of rules.

    Raises:
        DataFileError: the file is missing or cannot be read.
        DataFormatError: it is no YAML.
        ConfigError: a rule is wrong. The message names the rule.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(f"{path}: the rules cannot be read", got=str(error)) from error
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataFormatError(
            f"{path}: this is no YAML",
            got=" ".join(str(error).split()),
            mend="quote texts with : or #",
        ) from error
    return rules_of(given, str(path))


def rules_of(given: Any, where: str = "rules") -> list[Rule]:
    """Makes rules of a list of mappings, or of a mapping with the key `rules`.

    Args:
        given: The list.
        where: What it is called in error messages.

    Raises:
        ConfigError: a rule is wrong. The message names the rule.
    """
    if isinstance(given, Mapping) and "rules" in given:
        given = given["rules"]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ConfigError(
            f"{where}: a list of rules is expected",
            got=f"{type(given).__name__}",
            allowed="lines such as - {name: short, max_words: 60}",
        )
    made: dict[str, Rule] = {}
    for number, one in enumerate(given, 1):
        rule = _rule(one, f"{where}, rule {number}")
        if rule.name in made:
            raise ConfigError(
                f"{where}, rule {number}: another rule has the name {rule.name!r}",
                mend="give each rule a name of its own",
            )
        made[rule.name] = rule
    return [*made.values()]


def _rule(given: Any, where: str) -> Rule:
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{where}: a rule has keys",
            got=repr(given)[:80],
            allowed="{name: short, max_words: 60}",
        )
    keys = [key for key in given if key not in (_NAME, _WHEN)]
    if len(keys) != 1:
        raise ConfigError(
            f"{where}: a rule has one metric, and perhaps name and when",
            got=", ".join(map(str, keys)) or "no metric",
            mend="write a rule for each metric",
        )
    key = str(keys[0])
    conditions, name, argument = given.get(_WHEN), key, given[keys[0]]
    if key.endswith(_SUFFIX) and key.removesuffix(_SUFFIX) in METRICS:
        if conditions is not None:
            raise ConfigError(f"{where}: {key} is a condition itself", mend="leave out when")
        name, conditions, argument = key.removesuffix(_SUFFIX), argument, True
        if isinstance(conditions, Mapping) and "tool" in conditions:
            argument = conditions["tool"]
            conditions = {k: v for k, v in conditions.items() if k != "tool"}
    try:
        metric = find(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.what}", mend=error.mend) from error
    called = given.get(_NAME)
    label = str(called) if called is not None else f"{key}: {given[keys[0]]}"
    try:
        read = metric.reads(argument) if metric.reads else argument
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where} ({label}): {key}: {error}", got=repr(argument)[:80]) from error
    return Rule(label, metric, read, _when(conditions, f"{where} ({label})"), _written(given))


def _when(given: Any, where: str) -> When:
    if given is None:
        return When()
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"{where}: when has keys", got=repr(given)[:80], allowed=", ".join(_CONDITIONS)
        )
    patterns = []
    for key, value in given.items():
        if key not in _CONDITIONS:
            raise ConfigError(
                f"{where}: there is no condition {key!r}", mend=did_you_mean(str(key), _CONDITIONS)
            )
        if key == "turn":
            continue
        place: Literal["query", "chat"] = "query" if key.startswith("query") else "chat"
        try:
            patterns.append((place, pattern(value), "not" not in key))
        except ValueError as error:
            raise ConfigError(f"{where}: {key}: {error}", got=repr(value)[:80]) from error
    turn = given.get("turn")
    if turn not in (None, "first", "later") and (
        isinstance(turn, bool) or not isinstance(turn, int) or turn < 1
    ):
        raise ConfigError(
            f"{where}: turn", got=repr(turn), allowed="first, later, or a number from 1"
        )
    return When(tuple(patterns), turn)


def _written(given: Mapping[str, Any]) -> str:
    parts = {key: value for key, value in given.items() if key != _NAME}
    return yaml.safe_dump(parts, default_flow_style=True, allow_unicode=True, width=1000).strip()
