"""How a recipe names its objective."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from instil.errors import ConfigError
from instil.losses import CrossEntropy, ForwardKL, HiddenState, JensenShannon, LogitMSE, WeightedSum
from instil.recipe.grid import RecipeFile
from instil.recipe.recipe import Recipe

FORMS: list[tuple[Any, Any]] = [
    ({"temperature": 2}, ForwardKL(temperature=2.0)),
    ({"weight": 2}, ForwardKL(weight=2.0)),
    ({"name": "jensen_shannon", "beta": 0.2}, JensenShannon(beta=0.2)),
    (
        [{"name": "cross_entropy", "weight": 1}, {"name": "logit_mse", "weight": 0.5, "top_k": 9}],
        WeightedSum(terms=(CrossEntropy(), LogitMSE(weight=0.5, top_k=9))),
    ),
    ({"name": "sum", "terms": [{"name": "cross_entropy"}]}, WeightedSum(terms=(CrossEntropy(),))),
    ({"name": "hidden_state", "layers": [1, -1]}, HiddenState(layers=(1, -1))),
]


def parse(objective: Any) -> Recipe:
    return Recipe.parse({"model": "m", "objective": objective})


@pytest.mark.parametrize(("written", "read"), FORMS)
def test_every_form_is_read_and_comes_back(written: Any, read: Any) -> None:
    recipe = parse(written)
    assert recipe.objective == read
    again = Recipe.parse(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))))
    assert again == recipe


def test_a_loss_that_is_made_already_is_taken() -> None:
    assert parse(CrossEntropy()).objective == CrossEntropy()
    assert parse(HiddenState()).objective == HiddenState()
    assert parse([CrossEntropy(), LogitMSE()]).objective == WeightedSum(
        terms=(CrossEntropy(), LogitMSE())
    )


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ([{"name": "cross_entropy"}, {"name": "logit_mes"}], "did you mean 'logit_mse'?"),
        ([{"name": "cross_entropy"}, {"name": "logit_mes"}], "objective.1: unknown name"),
        ([{"name": "label_kl"}], "objective.0: unknown name 'label_kl'; known: 'forward_kl'"),
        ({"name": "hidden_sate"}, "did you mean 'hidden_state'?"),
        ([{"weight": 2}], "objective.0: the key `name` is missing"),
        ([], "objective: an empty list"),
        ([{"name": "logit_mse", "weight": 0}], "objective.0.weight: Input should be greater"),
        (
            [{"name": "logit_mse", "topk": 3}],
            "objective.0.topk: unknown key; did you mean 'top_k'?",
        ),
        (
            {"name": "hidden_state", "layrs": 1},
            "objective.layrs: unknown key; did you mean 'layers'",
        ),
        ({"temperatur": 2}, "objective.temperatur: unknown key; did you mean 'temperature'?"),
        ({"name": "jensen_shannon", "beta": 1}, "objective.beta: Input should be less than 1"),
        (
            [{"name": "forward_kl"}, {"name": "reverse_kl", "temperature": 2}],
            "objective: the losses have different temperatures (forward_kl 1, reverse_kl 2)",
        ),
        (
            [{"name": "logit_mse"}, {"name": "logit_mse", "weight": 2}],
            "objective: losses 0 and 1 are the same (logit_mse)",
        ),
        ({"name": "label_kl"}, "label_kl needs labels"),
    ],
)
def test_one_problem_is_told_once_and_where_it_was_written(objective: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(objective)
    assert "1 problem:" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "objective", [[{"name": "cross_entropy"}], {"name": "hidden_state"}, {"name": "reverse_kl"}]
)
def test_a_classification_task_takes_its_own_loss_alone(objective: Any) -> None:
    task = {"name": "sentiment"}
    with pytest.raises(ConfigError, match="use label_kl"):
        Recipe.parse({"model": "m", "task": task, "objective": objective})
    assert Recipe.parse({"model": "m", "task": task}).objective.name == "label_kl"


def test_the_schema_shows_both_forms() -> None:
    mapping, listed = RecipeFile.model_json_schema()["properties"]["objective"]["anyOf"]
    assert {"forward_kl", "hidden_state", "label_kl", "sum"} <= set(
        mapping["discriminator"]["mapping"]
    )
    assert (listed["type"], listed["minItems"]) == ("array", 1)
    assert "label_kl" not in json.dumps(listed)
