"""What `distill` sets where the user sets nothing."""

from __future__ import annotations

from typing import Any

import pytest

from instil.recipe import sections
from instil.recipe.recipe import Recipe
from instil.recipe.usual import BASELINES, usual


@pytest.mark.parametrize(
    ("settings", "until"),
    [
        ({}, "plateau"),
        ({"training": {"batch_size": 4}}, "plateau"),
        ({"training": {"max_steps": 30}}, None),
        ({"training": {"epochs": 2}}, None),
        ({"training": {"until": None}}, None),
        ({"training": {"until": "plateau", "max_steps": 30}}, "plateau"),
        ({"evaluation": {"at_steps": 5}}, None),
        ({"training": sections.Training(batch_size=4)}, "plateau"),
        ({"training": sections.Training(max_steps=4)}, None),
        ({"training": sections.Training(until=None)}, None),
    ],
    ids=str,
)
def test_training_ends_by_itself_unless_it_has_a_number_of_steps(
    settings: dict[str, Any], until: str | None
) -> None:
    made = usual(settings)
    assert Recipe.parse({"model": "m", **made}).training.until == until
    assert {**settings, **made}.keys() == made.keys()


@pytest.mark.parametrize(
    ("evaluation", "baselines"),
    [
        (None, BASELINES),
        ({"rows": 5}, BASELINES),
        ({"baselines": []}, ()),
        (sections.Evaluation(rows=5), BASELINES),
        (sections.Evaluation(baselines=("zero_shot",)), ("zero_shot",)),
    ],
    ids=str,
)
def test_baselines_are_those_that_are_named(evaluation: Any, baselines: tuple[str, ...]) -> None:
    found = usual({"evaluation": evaluation} if evaluation else {})["evaluation"]
    if isinstance(found, dict):
        found = sections.Evaluation.model_validate(found)
    assert found.baselines == baselines
