"""Rules that a model proposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from tests.server import serving
from typer.testing import CliRunner

from instil.cli import app
from instil.evaluation.drafting import drafted_by
from instil.metrics.rules import read_rules

SAID = """Here are the rules:
```yaml
- {name: greeting, starts_with: "Hi there!"}
- {name: short, max_words: many}
- {name: greeting, max_words: 40}
- {name: safe, contains: our care team, when: {query_regex: "smoke|fire"}}
```
"""


class Fixed:
    """Answers always the same."""

    name = "fixed"

    def __init__(self, said: str) -> None:
        self.said = said
        self.asked: list[str] = []

    def ask(
        self, prompts: Sequence[str], advance: Callable[[int], None], *, max_tokens: int
    ) -> list[str]:
        self.asked += prompts
        return [self.said]


def test_what_is_no_rule_becomes_a_comment() -> None:
    chat = Fixed(SAID)
    made = drafted_by(chat, "Be kind.")
    assert "Be kind." in chat.asked[0]
    rules = yaml.safe_load(made)
    assert [rule["name"] for rule in rules] == ["greeting", "safe"]
    assert "# Proposed by fixed." in made
    assert "'max_words': 'many'" in made
    assert "another rule has this name" in made


def test_a_model_does_not_choose_what_is_imported() -> None:
    made = drafted_by(Fixed('- {name: a, "python:os.getcwd": 1}\n- {name: b, max_words: 3}'), "x")
    assert [rule["name"] for rule in yaml.safe_load(made)] == ["b"]


@pytest.mark.parametrize(
    "said",
    [
        'rules:\n- {name: a, max_words: 3}\n- {name: b, must_regex: "x"}',
        'Sure.\n- {name: a, max_words: 3}\n- {name: broken, starts_with: "no end\n- {name: b, must_regex: "x"}',
    ],
)
def test_a_line_that_is_no_yaml_costs_only_itself(said: str) -> None:
    assert [rule["name"] for rule in yaml.safe_load(drafted_by(Fixed(said), "x"))] == ["a", "b"]


def test_a_model_without_rules_is_said() -> None:
    made = drafted_by(Fixed("I cannot do that."), "x")
    assert yaml.safe_load(made) is None
    assert "# fixed proposed no rule that can be read." in made


def test_the_command_asks_a_server(tmp_path: Path) -> None:
    prompt, output = tmp_path / "prompt.txt", tmp_path / "rules.yaml"
    prompt.write_text("Greet with Hi there!")
    with serving(lambda body: SAID) as server:
        found = CliRunner().invoke(
            app,
            [
                *("rules", "draft", str(prompt), "--output", str(output)),
                *("--by", server.address, "--by-model", "large"),
            ],
        )
        assert found.exit_code == 0, found.output
        assert [rule.name for rule in read_rules(output)] == ["greeting", "safe"]
        again = CliRunner().invoke(
            app, ["rules", "draft", str(prompt), "--output", str(output), "--by", server.address]
        )
        assert again.exit_code == 2
        assert "already exists" in again.output
        assert len(server.seen) == 1
