from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from instil.errors import ConfigError
from instil.losses import CrossEntropy, ForwardKL
from instil.recipe.recipe import Recipe


def test_a_model_is_all_that_must_be_given() -> None:
    recipe = Recipe.parse({"model": "m"})
    assert recipe.objective == ForwardKL(temperature=1.0)
    assert (recipe.tuning.r, recipe.tuning.alpha) == (8, 16)


def test_yaml_and_back() -> None:
    recipe = Recipe.parse({"model": "m", "objective": {"name": "cross_entropy"}, "seed": 3})
    again = Recipe.parse(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))))
    assert again == recipe
    assert isinstance(again.objective, CrossEntropy)


def test_all_problems_are_told_at_once_with_what_was_meant() -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse(
            {
                "model": "m",
                "sede": 1,
                "training": {"learning_rat": 1e-3, "batch_size": 0},
                "objective": {"name": "forward_kl", "temperatur": 2},
            }
        )
    message = str(caught.value)
    assert "4 problems" in message
    assert "sede: unknown key; did you mean 'seed'?" in message
    assert "training.learning_rat: unknown key; did you mean 'learning_rate'?" in message
    assert "training.batch_size: Input should be greater than or equal to 1 (got 0)" in message
    assert "temperatur: unknown key" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "model"),
        ({"model": "m", "training": {"epochs": 1, "max_steps": 5}}, "cannot both be set"),
        ({"model": "m", "teacher": {"samples": 2}}, "sampling_temperature > 0"),
        (
            {
                "model": "m",
                "teacher": {"completions": "gold", "samples": 2, "sampling_temperature": 1},
            },
            "need completions: teacher",
        ),
        ({"model": "m", "prompt": {"pattern": "no place"}}, "{input}"),
        ({"model": "m", "prompt": {"completion": " {output}"}}, "after {output}"),
        ({"model": "m", "prompt": {"completion": "nothing"}}, "{output}"),
        ({"model": "m", "objective": {"name": "reverse"}}, "did you mean 'reverse_kl'?"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse(settings)
    assert words in str(caught.value)


WRITING: dict[str, object] = {"model": "m", "task": {"name": "gsm8k"}}


def test_a_task_whose_answers_are_written_is_read_as_text_is() -> None:
    recipe = Recipe.parse(WRITING)
    assert recipe.objective == ForwardKL()
    teacher = {"completions": "teacher", "samples": 2, "sampling_temperature": 1}
    Recipe.parse(WRITING | {"teacher": teacher | {"max_new_tokens": 9}})
    Recipe.parse(WRITING | {"objective": [{"name": "cross_entropy"}, {"name": "logit_mse"}]})
    for method in ("zero_shot", "in_context", "pattern_fine_tuning_in_context"):
        again = Recipe.parse(WRITING | {"method": method})
        assert Recipe.parse(again.model_dump(mode="json")) == again
    assert Recipe(model="m", task=recipe.task).objective == ForwardKL()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": {"name": "label_kl"}}, "label_kl needs labels.*use forward_kl"),
        ({"method": "vanilla_fine_tuning"}, "classification head.*use pattern_fine_tuning"),
        ({"tuning": {"name": "full"}}, "cannot be used with free-text answers; use lora"),
        ({"student": {"keep_layers": 2}}, "student.keep_layers: has no effect"),
        (
            {"training": {"max_steps": 30}, "evaluation": {"at_steps": [10, 40]}},
            r"at_steps: training ends after step 30 \(got 40\)",
        ),
        ({"evaluation": {"at_steps": 0}}, "at_steps: steps are 1 or more"),
        ({"evaluation": {"at_steps": [0, 3]}}, "at_steps: steps are 1 or more"),
        ({"evaluation": {"at_steps": []}}, "at_steps: .* a list must have at least one step"),
        (
            {"teacher": {"contexts": 2}},
            "teacher.contexts: has no effect with a task whose answers are",
        ),
        ({"teacher": {"calibration": "batch"}}, "teacher.calibration: has no effect"),
        ({"demonstrations": {"balanced": False}}, "demonstrations.balanced: has no effect"),
        ({"prompt": {"pattern": "{input}!"}}, "prompt.pattern: has no effect"),
        ({"task": {"name": "gsm8k", "prompt": "wei"}}, "Set folder"),
        (
            {
                "task": {"name": "gsm8k", "prompt": "wei", "folder": "."},
                "demonstrations": {"k": 9},
            },
            r"demonstrations\.k: the task has only 8 demonstrations \(got 9\)",
        ),
        (
            {
                "task": {"name": "gsm8k", "prompt": "wei", "folder": "."},
                "demonstrations": {"draw": "per_query"},
            },
            "none are drawn.*use fixed",
        ),
    ],
)
def test_what_a_task_with_written_answers_does_not_read_is_refused(
    settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Recipe.parse(WRITING | settings)


FILES: dict[str, object] = {"model": "m", "task": {"name": "files"}}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (
            {"format": "chat", "pattern": "{input}:", "completion": "{output}#"},
            "prompt.pattern: has no effect in the chat format (got '{input}:'); "
            "prompt.completion: has no effect in the chat format (got '{output}#')",
        ),
        ({"format": "chat", "separator": ""}, "prompt.separator: has no effect in the chat format"),
        (
            {"format": "plain", "chat_template_kwargs": {"enable_thinking": False}},
            "prompt.chat_template_kwargs: has no effect in the plain format "
            "(got {'enable_thinking': False})",
        ),
        ({"completion": "\n{output}\n"}, "the text before {output} must not contain '\\n'"),
    ],
)
def test_settings_of_the_other_prompt_format_are_refused(
    prompt: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse(FILES | {"prompt": prompt})
    assert words in str(caught.value)


def test_the_prompt_format_auto_is_plain_for_labels() -> None:
    labels = {"model": "m", "task": {"name": "sentiment"}}
    arguments = {"chat_template_kwargs": {"enable_thinking": False}}
    with pytest.raises(ConfigError, match="has no effect in the plain format"):
        Recipe.parse(labels | {"prompt": arguments})
    Recipe.parse(labels | {"prompt": arguments | {"format": "chat"}})
    Recipe.parse(labels | {"prompt": {"completion": "{output}#"}})
    Recipe.parse(FILES | {"prompt": arguments})  # the model decides


@pytest.mark.parametrize("seed", [-1, 2**32, 1764425123456789012])
def test_a_seed_that_a_generator_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=rf"seed: (Input should|must) be .* \(got {seed}\)"):
        Recipe.parse({"model": "m", "seed": seed})
    assert Recipe.parse({"model": "m", "seed": 2**32 - 1}).seed == 2**32 - 1


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("training", "epochs"),
        ("training", "learning_rate"),
        ("training", "weight_decay"),
        ("teacher", "sampling_temperature"),
        ("tuning", "alpha"),
        ("objective", "temperature"),
    ],
)
def test_no_setting_is_infinite(section: str, key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: Input should be"):
        Recipe.parse({"model": "m", section: {key: value}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training": {"until": "platau"}},
            "1 problem: training.until: unknown value 'platau'; did you mean 'plateau'?",
        ),
        (
            {"training": {"until": {"kl_share": 1.5}}},
            "1 problem: training.until.kl_share: Input should be less than 1 (got 1.5)",
        ),
        (
            {"training": {"until": {"share": 0.1}}},
            "training.until.share: unknown key; did you mean 'kl_share'?",
        ),
        (
            {"training": {"until": "plateau"}, "evaluation": {"at_steps": 5}},
            "evaluation.at_steps and training.until cannot both be set",
        ),
        (
            {"training": {"until": {"kl_share": 0.1}}, "objective": {"name": "cross_entropy"}},
            "training.until: kl_share needs a loss that compares the student's distribution",
        ),
        (
            {"training": {"until": {"kl_share": 0.1}}, "method": "pattern_fine_tuning"},
            "training.until: kl_share needs a loss that compares the student's distribution",
        ),
        (
            {"training": {"make_inputs": 5}, "teacher": {"completions": "gold"}},
            "training.make_inputs: inputs that the teacher writes have no gold outputs",
        ),
    ],
)
def test_rules_that_end_a_training_fit_the_rest(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Recipe.parse({"model": "m", **changes})


@pytest.mark.parametrize("until", [None, "plateau", {"kl_share": 0.05}])
def test_each_rule_is_read(until: Any) -> None:
    recipe = Recipe.parse({"model": "m", "training": {"until": until}})
    assert recipe.model_dump(mode="json")["training"]["until"] == until
