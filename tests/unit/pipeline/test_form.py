from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instil.errors import ConfigError
from instil.models.load import Outline, outline
from instil.pipeline.form import form_of
from instil.prompts.format import PlainPrompt
from instil.recipe.recipe import Recipe
from instil.tasks.rows import Row


@pytest.fixture
def model(model_folders: dict[str, Path]) -> Outline:
    return outline(str(model_folders["llama"]))


def recipe(name: str, task: dict[str, Any] | None = None, **prompt: Any) -> Recipe:
    return Recipe.parse({"model": "m", "task": {"name": name, **(task or {})}, "prompt": prompt})


def test_auto_is_plain_for_labels_and_chat_for_text(model: Outline) -> None:
    assert form_of(recipe("sentiment"), model).name == "plain"
    assert form_of(recipe("gsm8k"), model).name == "chat"
    assert form_of(recipe("files"), model).name == "chat"


def test_a_task_fills_in_its_own_pattern(model: Outline) -> None:
    form = form_of(recipe("gsm8k", {"pattern": "<|start|>{question}"}, format="plain"), model)
    assert isinstance(form, PlainPrompt)
    assert form.pattern == "{input}"
    assert form.tokens.spells("<|start|>") is None  # the pattern's own tokens remain tokens
    assert form.tokens.spells("<|end|>") == "<|end|>"
    own = form_of(recipe("files", format="plain", pattern="{input}!"), model)
    assert isinstance(own, PlainPrompt)
    assert own.pattern == "{input}!"


def test_the_words_of_labels_remain_tokens(model: Outline) -> None:
    task = {
        "pattern": "{text}",
        "verbalizer": {"a": ["<|start|>"], "b": ["B"]},
        "train": "a.jsonl",
        "in_domain": {"here": "a.jsonl"},
    }
    for format in ("plain", "chat"):
        form = form_of(recipe("classification", task, format=format), model)
        ids = form.answer_ids(Row("x", "<|start|>"))
        assert model.tokenizer.convert_tokens_to_ids("<|start|>") in ids


def test_own_settings_of_the_other_format_are_refused(model: Outline) -> None:
    with pytest.raises(ConfigError, match=r"prompt\.completion: has no effect in the chat format"):
        form_of(recipe("gsm8k", completion="{output}#"), model)
