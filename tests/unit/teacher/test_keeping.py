"""Texts that a student keeps: what the base writes, and what a user gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import QUIET, form_of, models_of, plain_logits

from instil.errors import AlignmentError, DataFileError, FieldError
from instil.models.load import LanguageModel
from instil.models.roles import Models
from instil.prompts.format import ChatPrompt
from instil.prompts.template import ChatTemplate
from instil.recipe.grid import override
from instil.recipe.recipe import Recipe
from instil.system.costs import Recorder
from instil.tasks.kept_texts import read_kept
from instil.teacher import completions
from instil.teacher.keeping import Keeper

Made = Callable[..., Keeper]


@pytest.fixture
def models(llama: LanguageModel) -> Models:
    return models_of(llama)


@pytest.fixture
def keeper(models: Models, tmp_path: Path) -> Made:
    def make(*changes: str) -> Keeper:
        plain = {"model": models.student.name, "keep": {"rows": 6, "tokens": 5}}
        recipe = Recipe.parse(override(plain, changes))
        form, folder = form_of(models.student), tmp_path / "cache"
        return Keeper(recipe, models.student, form, folder, Recorder(), QUIET)

    return make


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts the base was given, each time that it wrote."""
    seen: list[int] = []
    usual = completions.completed

    def counted(*args: Any, **more: Any) -> Any:
        seen.append(len(args[1]))
        return usual(*args, **more)

    monkeypatch.setattr(completions, "completed", counted)
    return seen


def test_the_base_writes_from_the_start_of_a_text_of_a_line_and_of_a_user_s_turn(
    keeper: Made, models: Models
) -> None:
    tokenizer = models.student.tokenizer
    lessons = keeper("keep.chats=0").lessons()
    template = ChatTemplate(tokenizer, {})
    turn = template.render([{"role": "user", "content": "x"}], generation_prompt=False)
    user = tokenizer(turn.partition("x")[0], add_special_tokens=False)["input_ids"]
    start = [tokenizer.bos_token_id]
    starts = [start, [*start, *tokenizer("\n", add_special_tokens=False)["input_ids"]], user]
    assert [row.student_prompt for row in lessons] == starts * 2
    assert all(len(row.completion) == 5 for row in lessons)
    assert len({tuple(row.completion) for row in lessons}) > 4


def test_half_of_the_texts_are_chats(keeper: Made, models: Models) -> None:
    form = ChatPrompt(models.student.tokenizer, template_kwargs={}, ends=models.student.end_ids)
    texts = keeper("keep.chats=0", "keep.rows=3").lessons()
    lessons = [*keeper().lessons()]
    assert [row.student_prompt for row in lessons[:3]] == [row.student_prompt for row in texts]
    turn = form.tokens.ids(form.opening, special=False)
    for row in lessons[3:]:
        query = form.tokens.text(row.student_prompt[len(turn) :]).partition(
            form.tokens.text(form.end_of_turn)
        )[0]
        assert row.student_prompt == form.prompt_ids(query)
        assert len(query) > 0
        assert 1 <= len(row.completion) <= 5
    assert len({tuple(row.student_prompt) for row in lessons[3:]}) == 3
    assert len(lessons) == 6


def test_a_model_without_a_template_keeps_texts_alone(
    keeper: Made, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.student.tokenizer, "chat_template", None)
    lessons = keeper().lessons()
    starts = {tuple(row.student_prompt) for row in lessons}
    assert len(lessons) == 6
    assert len(starts) == 2


def test_the_targets_are_the_base_s_predictions_without_a_context(
    keeper: Made, models: Models
) -> None:
    changes = ("teacher.min_probability=0.01", "objective={name: reverse_kl}")  # of the rows alone
    for row in keeper(*changes).lessons():
        with models.adapter(on=False):
            logits = plain_logits(models.student.network, row.student_prompt, row.completion)
        likely = logits.log_softmax(-1)
        known = row.targets.ids_NK.long()
        drawn = row.targets.logprobs_NK.isneginf()
        expected = likely.gather(-1, known).masked_fill(drawn, -torch.inf)
        top = row.targets.logprobs_NK.argmax(-1, keepdim=True)
        torch.testing.assert_close(
            row.targets.logprobs_NK.gather(-1, top), expected.gather(-1, top), atol=0.02, rtol=0
        )


def test_texts_are_written_once_for_all_runs_of_a_model(keeper: Made, asked: list[int]) -> None:
    first = keeper()
    texts = [row.completion for row in first.lessons() or []]
    assert asked == [3, 3, 3]  # texts, users' turns and answers
    assert "keep" not in first.recorder.reused
    second = keeper("seed=1", "training.batch_size=4", "teacher.top_k=8", "dtype=float32")
    assert [row.completion for row in second.lessons()] == texts
    assert asked == [3, 3, 3]
    assert second.recorder.reused == {"keep"}
    spent = [one.recorder.costs()["keep"] for one in (first, second)]
    assert spent[0].tokens == spent[1].tokens > 0
    keeper("keep.rows=8").lessons()
    assert asked[3:] == [4, 4, 4]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_holds_texts_and_rows(
    keeper: Made, models: Models, tmp_path: Path, asked: list[int]
) -> None:
    path = write(
        tmp_path / "kept.jsonl",
        [{"text": "Once."}, {"input": "6", "output": "six"}, {"input": "7"}],
    )
    text, row, asked_row = keeper(f"keep.source={path}").lessons()
    tokenizer, form = models.student.tokenizer, form_of(models.student)
    assert text.student_prompt == [tokenizer.bos_token_id]
    assert tokenizer.decode(text.completion) == "Once."
    assert row.student_prompt == form.prompt_ids("6")
    assert tokenizer.decode(row.completion) == " six\n"
    assert asked_row.student_prompt == form.prompt_ids("7")
    assert 1 <= len(asked_row.completion) <= 5
    assert asked == [1]


def test_a_wrong_file_is_refused(keeper: Made, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="none"):
        keeper(f"keep.source={tmp_path / 'none.jsonl'}").lessons()
    path = write(tmp_path / "wrong.jsonl", [{"text": "Once."}, {"label": "x"}])
    with pytest.raises(FieldError, match=r"line 2: .*'input'"):
        read_kept(path)
    path = write(tmp_path / "empty.jsonl", [{"text": " "}])
    with pytest.raises(FieldError, match=r"line 1: the field 'text' is empty"):
        read_kept(path)
    path = write(tmp_path / "long.jsonl", [{"text": "Once."}, {"text": "x" * 600}])
    with pytest.raises(AlignmentError, match=r"long.jsonl, row 2: .* allowed: at most 512"):
        keeper(f"keep.source={path}").lessons()
    path = write(tmp_path / "lines.jsonl", [{"input": "6", "output": "s\nix"}])
    with pytest.raises(FieldError, match=r"lines.jsonl, row 1: an output"):
        keeper(f"keep.source={path}").lessons()
