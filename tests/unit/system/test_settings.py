"""What no setting may be."""

from __future__ import annotations

from typing import Any

import pytest

from instil.errors import ConfigError
from instil.recipe.recipe import Recipe
from instil.system.settings import MOST

BASE = {"model": "tiny", "task": {"name": "gsm8k"}}


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": MOST},
        {"seed": "3"},
        {"student": {"save": False}},
        {"student": {"save": "no"}},
        {"prompt": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"training": {"learning_rate": 1e30}},
        {"training": {"learning_rate": "1e-3"}},
    ],
)
def test_what_is_taken(settings: dict[str, Any]) -> None:
    Recipe.parse({**BASE, **settings})


TRUE = "must not be true or false; YAML reads the words yes, no, on and off so, unless they are in"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"seed": MOST + 1}, "seed: must be at most 4,294,967,295 (got 4294967296)"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0 (got -1)"),
        ({"seed": str(10**12)}, "seed: Input should be less than or equal to 4294967295"),
        ({"seed": True}, f"seed: {TRUE} quotation marks (got True)"),
        ({"model": False}, f"model: {TRUE}"),
        ({"training": {"rows": True}}, f"training.rows: {TRUE}"),
        ({"training": {"max_steps": 10**20}}, "training.max_steps: must be at most 4,294,967,295"),
        ({"training": {"learning_rate": False}}, f"training.learning_rate: {TRUE}"),
        (
            {"training": {"learning_rate": float("inf")}},
            "training.learning_rate: Input should be a finite",
        ),
        (
            {"training": {"weight_decay": float("nan")}},
            "training.weight_decay: Input should be a finite",
        ),
        (
            {"training": {"epochs": 1e300}},
            "training.epochs: Input should be less than or equal to 1000000",
        ),
        (
            {"teacher": {"sampling_temperature": float("inf")}},
            "sampling_temperature: Input should be a finite",
        ),
        ({"tuning": {"r": True}}, f"tuning.r: {TRUE}"),
        ({"tuning": {"r": 10**12}}, "tuning.r: must be at most"),
        (
            {"objective": {"name": "forward_kl", "temperature": True}},
            f"objective.temperature: {TRUE}",
        ),
        ({"objective": [{"name": "logit_mse", "top_k": True}]}, f"objective.0.top_k: {TRUE}"),
        ({"evaluation": {"at_steps": [True]}}, f"evaluation.at_steps: {TRUE}"),
        ({"evaluation": {"at_steps": [1, 10**12]}}, "evaluation.at_steps: must be at most"),
        (
            {"prompt": {"separator": 1}},
            "prompt.separator: must be text (got 1); put text that YAML",
        ),
        ({"prompt": {"separator": None}}, "prompt.separator: must be text (got None); put text"),
        ({"task": "gsm8k"}, "task: must be a section with keys of its own (got 'gsm8k')"),
        ({"training": None}, "training: must be a section with keys of its own (got None)"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Recipe.parse({**BASE, **settings})
    assert told in str(error.value)
    assert "1 problem:" in str(error.value)


def test_a_value_in_a_message_is_cut() -> None:
    laughs: Any = "ha"
    for _ in range(30):
        laughs = [laughs] * 9
    with pytest.raises(ConfigError) as error:
        Recipe.parse({**BASE, "training": laughs})
    assert len(str(error.value)) < 10_000
