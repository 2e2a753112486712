from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from instil.errors import ConfigError
from instil.losses import CrossEntropy, ForwardKL, HiddenState, ReverseKL, WeightedSum
from instil.models.tuning import BitFit, LoRA
from instil.recipe.changes import planned
from instil.recipe.grid import Plan
from instil.recipe.recipe import Recipe
from instil.recipe.sections import Training
from instil.tasks import Files

FILES = {"model": "tiny", "task": {"name": "files"}}


def changed(recipe: Any = FILES, *, grid: Any = None, changes: Any = (), **arguments: Any) -> Plan:
    return planned(recipe, arguments, grid, changes)


def only(plan: Plan) -> Recipe:
    (cell,) = plan.cells
    return cell.recipe


def test_a_recipe_is_a_name_a_file_a_mapping_or_an_object(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(FILES))
    expected = only(changed())
    for recipe in (str(path), path, Recipe.parse(FILES), {**FILES, "task": Files()}):
        assert only(changed(recipe)) == expected
    assert len(changed("sentiment-smollm2").cells) > 1


def test_a_mapping_changes_the_keys_that_it_names() -> None:
    recipe = {**FILES, "training": {"max_steps": 5, "batch_size": 2}}
    training = only(changed(recipe, training={"max_steps": 7})).training
    assert (training.max_steps, training.batch_size) == (7, 2)
    assert recipe["training"] == {"max_steps": 5, "batch_size": 2}


def test_an_object_or_another_name_replaces_the_section() -> None:
    recipe = {
        **FILES,
        "training": {"max_steps": 5, "batch_size": 2},
        "objective": {"name": "forward_kl", "temperature": 2.0},
        "tuning": {"r": 4, "alpha": 4},
    }
    made = only(
        changed(
            recipe,
            training=Training(max_steps=7),
            objective={"name": "reverse_kl"},
            tuning=LoRA(r=2),
        )
    )
    assert made.training == Training(max_steps=7)
    assert made.objective == ReverseKL()
    assert made.tuning == LoRA(r=2)


def test_losses_may_be_objects_and_their_list_is_a_sum() -> None:
    terms = [CrossEntropy(weight=0.5), HiddenState()]
    assert only(changed(objective=terms)).objective == WeightedSum(terms=tuple(terms))


def test_a_grid_takes_the_place_of_the_recipes_own() -> None:
    recipe = {**FILES, "grid": {"seed": [0, 1, 2]}}
    assert len(changed(recipe).cells) == 3
    assert len(changed(recipe, grid={}).cells) == 1
    plan = changed(recipe, grid={"objective": [ForwardKL(temperature=2), CrossEntropy()]})
    assert [cell.recipe.objective for cell in plan.cells] == [
        ForwardKL(temperature=2),
        CrossEntropy(),
    ]
    assert yaml.safe_load(yaml.safe_dump(plan.settings)) == plan.settings


def test_a_section_that_the_grid_varies_is_refused() -> None:
    grid = {"training.max_steps": [1, 2]}
    with pytest.raises(ConfigError, match=r"training\.max_steps: the grid varies training"):
        changed(training={"max_steps": 3}, grid=grid)
    with pytest.raises(ConfigError, match="seed: the grid varies seed"):
        changed(seed=3, grid={"seed": [0, 1]})
    assert len(changed(training={"batch_size": 3}, grid=grid).cells) == 2


def test_changes_in_words_come_last() -> None:
    made = only(changed(training={"max_steps": 7}, changes=["training.max_steps=9"]))
    assert made.training.max_steps == 9
    with pytest.raises(ConfigError, match="not of the form KEY=VALUE"):
        changed(changes=["training"])


def test_every_problem_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"2 problems: tuning: .*'lor'.*did you mean 'max_steps'\?"
    ):
        changed(training={"max_step": 3}, tuning={"name": "lor"})
    with pytest.raises(ConfigError, match="tuning: bitfit cannot be used with free-text answers"):
        changed(tuning=BitFit())
