"""Runs on conversations: from logs to a student."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import QUIET

from instil.errors import ChatTemplateError, ContextError, FieldError
from instil.pipeline import cell
from instil.pipeline.given import Given
from instil.pipeline.student import Student
from instil.pipeline.text import TextSteps
from instil.recipe.recipe import Recipe
from instil.results.schema import RESULTS, Results
from instil.teacher.lessons import Grouped, Together

SYSTEM = {"role": "system", "content": "You are the assistant of a shop that sells lamps. Be kind."}
Settings = Callable[..., Recipe]


def talk(number: int, turns: int = 2) -> list[dict[str, Any]]:
    return [
        message
        for turn in range(turns)
        for message in (
            {"role": "user", "content": f"lamp {number} part {turn}?"},
            {"role": "assistant", "content": f"ok {number}{turn}"},
        )
    ]


def logs(count: int = 12, system: dict[str, Any] | None = SYSTEM) -> list[dict[str, Any]]:
    head = [system] if system else []
    return [{"messages": [*head, *talk(number)]} for number in range(count)]


@pytest.fixture
def recipe(
    model_folders: dict[str, Path], jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> Settings:
    """A small recipe of conversations; sections are given as keywords."""

    def make(
        rows: list[dict[str, Any]], *, task: dict[str, Any] | None = None, **sections: Any
    ) -> Recipe:
        files = {"name": "files", "inputs": jsonl("logs.jsonl", rows), "context_from_logs": True}
        return Recipe.parse(
            {
                "model": str(model_folders["llama"]),
                "task": files | (task or {}),
                "dtype": "float32",
                "evaluation": {"baselines": ["zero_shot", "in_context"]},
                "keep": {"source": "none"},
                **sections,
                "teacher": {"max_new_tokens": 4, **sections.get("teacher", {})},
                "training": {"max_steps": 2, "batch_size": 2, **sections.get("training", {})},
            }
        )

    return make


def prepared(recipe: Recipe, folder: Path) -> TextSteps:
    return TextSteps.prepare(recipe, store=folder / "store", display=QUIET)


@pytest.mark.parametrize("completions", ["teacher", "gold"])
def test_a_prompt_is_baked_from_the_logs_that_hold_it(
    recipe: Settings, tmp_path: Path, completions: str
) -> None:
    made = recipe(logs(), teacher={"completions": completions})
    results = Results.read(cell.run(made, tmp_path / "run", display=QUIET) / RESULTS)
    assert results.logs is not None
    assert results.logs.sentence() == "12 conversations, 24 assistant turns; system prompt in 12"
    assert results.context is not None
    assert results.context.description == "the conversations' system prompt"
    assert results.rows["training"].rows == 20
    assert results.methods[0].scores[0].rows == 4
    assert results.methods[0].scores[0].completions == completions
    zero_shot, in_context = results.result("zero_shot"), results.result("in_context")
    assert zero_shot is not None
    assert in_context is not None
    saved = in_context.prompt_tokens_mean - zero_shot.prompt_tokens_mean
    assert saved > len(SYSTEM["content"])
    student = Student.load(tmp_path / "run")
    assert results.prompt.messages is not None
    assert [one.role for one in results.prompt.messages] == ["user"]
    answers = student.answer(["lamp 1?", [*talk(3)[:3]]])
    assert len(answers) == 2


def test_the_turns_of_a_conversation_are_one_lesson(recipe: Settings, tmp_path: Path) -> None:
    made = prepared(recipe(logs()), tmp_path)
    taught = made.teach()
    assert taught is not None
    assert isinstance(taught.lessons, Grouped)
    assert [len(of) for of in taught.lessons.groups] == [2] * 10
    one = taught.lessons[0]
    assert isinstance(one, Together)
    assert len(one.sequences) == 2
    assert one.terms == sum(len(ids) for _, ids in one.sequences)
    assert one.targets is not None
    assert len(one.targets.logsumexp_N) == one.terms


@pytest.mark.parametrize("completions", ["teacher", "gold"])
def test_training_is_that_of_a_row_for_each_turn(
    recipe: Settings, tmp_path: Path, completions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All conversations are in one batch, so that both ways have the same batches."""
    ends, usual = [], Grouped.of
    for apart in (False, True):
        if apart:
            monkeypatch.setattr(
                Grouped, "of", lambda lessons, whole: usual(lessons, [None] * len(lessons))
            )
        size = 20 if apart else 10
        made = recipe(logs(), teacher={"completions": completions}, training={"batch_size": size})
        steps = prepared(made, tmp_path)
        taught = steps.teach()
        assert taught is not None
        assert len(taught.lessons) == size
        trained = steps.train(taught, tmp_path / f"run{apart}")
        network: Any = trained.models.student.network
        ends.append({n: p.detach() for n, p in network.named_parameters() if p.requires_grad})
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-4, rtol=1e-4)


def test_conversations_that_begin_otherwise_keep_their_own_context(
    recipe: Settings, tmp_path: Path
) -> None:
    other = {"role": "system", "content": "You sell lamps. Today is Monday."}
    rows = [*logs(11), {"messages": [other, *talk(20)]}, {"messages": talk(21)}]
    with_all = recipe(rows, task={"on_bad_row": "drop"})
    given = Given.read(with_all, with_all.task)  # type: ignore[arg-type]
    assert given.facts is not None
    assert (given.facts.other_heads, given.facts.head_messages) == (1, 1)
    assert [one.reason for one in given.dropped] == ["no context"]
    steps = prepared(with_all, tmp_path)
    prompts = {
        steps.models.teacher.tokenizer.decode(ids) for ids in steps.learnt.teacher_prompts
    } | {steps.models.teacher.tokenizer.decode(ids) for ids in steps.sets[0][1].teacher_prompts}
    assert sum("Today is Monday." in text for text in prompts) == 2
    assert all(("sells lamps" in text) != ("Monday" in text) for text in prompts)
    students = [steps.models.teacher.tokenizer.decode(i) for i in steps.learnt.student_prompts]
    assert not any("You" in text for text in students)


def test_rows_that_do_not_fit_are_left_out_and_listed(recipe: Settings, tmp_path: Path) -> None:
    long = {"messages": [SYSTEM, {"role": "user", "content": "x" * 600}]}
    forged = {"messages": [SYSTEM, *talk(30)[:3]]}
    made = recipe([*logs(), long, forged], task={"on_bad_row": "drop"})
    folder = cell.run(made, tmp_path / "run", display=QUIET)
    lines = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    assert [(one["reason"], one["where"].rpartition("/")[2]) for one in lines] == [
        ("too long", "logs.jsonl, line 13, message 3")
    ]
    results = Results.read(folder / RESULTS)
    assert results.logs is not None
    assert results.logs.dropped == {"too long": 1}


def test_the_student_may_keep_a_short_prompt(recipe: Settings, tmp_path: Path) -> None:
    steps = prepared(recipe(logs(), task={"student_system": "Shop."}), tmp_path)
    decode = steps.models.student.tokenizer.decode
    assert decode(steps.learnt.student_prompts[0]).startswith("<|start|>system\nShop.<|end|>")
    assert "Shop." not in decode(steps.learnt.teacher_prompts[0])
    facts = steps.facts(None)
    assert [one.content for one in facts["prompt"].messages] == ["Shop.", "{input}"]


def test_a_given_instruction_is_taken_out_of_the_logs(recipe: Settings, tmp_path: Path) -> None:
    instruction = tmp_path / "instruction.txt"
    instruction.write_text(SYSTEM["content"] + "\n")
    task = {"context_from_logs": False, "instruction": str(instruction)}
    steps = prepared(recipe(logs(), task=task), tmp_path)
    decode = steps.models.student.tokenizer.decode
    assert "sells lamps" not in decode(steps.learnt.student_prompts[0])
    assert decode(steps.learnt.teacher_prompts[0]).count("sells lamps") == 1


def test_a_row_may_bring_its_own_document(recipe: Settings, tmp_path: Path) -> None:
    rows = [
        {"input": f"lamp {n}?", "context": f"Page {n % 3}: lamp {n} is red."} for n in range(12)
    ]
    steps = prepared(recipe(rows, task={"context_from_logs": False}), tmp_path)
    decode = steps.models.teacher.tokenizer.decode
    row, prompt = steps.learnt.rows[0], decode(steps.learnt.teacher_prompts[0])
    assert f"<|start|>system\n{row.context}<|end|>" in prompt
    assert "Page" not in decode(steps.learnt.student_prompts[0])


def test_without_a_context_the_way_out_is_told(recipe: Settings) -> None:
    made = recipe(logs(), task={"context_from_logs": False})
    with pytest.raises(ContextError, match="pass --context-from-logs, since the conversations beg"):
        Given.read(made, made.task)  # type: ignore[arg-type]
    none = recipe(logs(system=None))
    with pytest.raises(ContextError, match="none begins with a system message"):
        Given.read(none, none.task)  # type: ignore[arg-type]


def test_gold_answers_that_are_missing_are_told(recipe: Settings) -> None:
    made = recipe([{"messages": [SYSTEM, talk(1)[0]]}], teacher={"completions": "gold"})
    with pytest.raises(FieldError, match=r"has no answer to learn.*--completions teacher"):
        Given.read(made, made.task)  # type: ignore[arg-type]


@pytest.mark.parametrize(("turns", "count"), [("all", 20), ("last", 10), ("first", 10)])
def test_which_turns_are_learnt(recipe: Settings, tmp_path: Path, turns: str, count: int) -> None:
    assert len(prepared(recipe(logs(), task={"turns": turns}), tmp_path).learnt.rows) == count


def test_near_copies_of_evaluation_rows_are_not_learnt(
    recipe: Settings, jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    words = " ".join(f"word{n}" for n in range(150))
    judged = {"messages": [SYSTEM, {"role": "user", "content": words}, talk(1)[1]]}
    near = {"messages": [SYSTEM, {"role": "user", "content": words + " more"}, talk(1)[1]]}
    made = recipe([*logs(), near], task={"eval": str(jsonl("eval.jsonl", [judged]))})
    given = Given.read(made, made.task)  # type: ignore[arg-type]
    assert [(one.reason, one.where.rpartition("/")[2]) for one in given.dropped] == [
        ("near duplicate", "logs.jsonl, line 13")
    ]
    assert len(given.inputs) == 24


def test_a_row_that_the_template_refuses_is_named(recipe: Settings, tmp_path: Path) -> None:
    greeting = {"messages": [SYSTEM, talk(1)[1], *talk(40)]}
    made = recipe([*logs(), greeting])
    strict = (
        "{% for m in messages %}{% if loop.index0 == 1 and messages[0]['role'] == 'system' and m['role'] != 'user' %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}<|start|>{{ m['role'] }}\n"
        "{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )
    folder = tmp_path / "strict"
    shutil.copytree(made.model, folder)
    (folder / "chat_template.jinja").write_text(strict)
    made = made.model_copy(update={"model": str(folder)})
    with pytest.raises(
        ChatTemplateError, match=r"(input|evaluation row) \d+: the chat template does"
    ):
        prepared(made, tmp_path)
    task = made.task.model_copy(update={"on_bad_row": "drop"})
    steps = prepared(made.model_copy(update={"task": task}), tmp_path)
    assert {one.reason for one in steps.left_out} == {"template refuses"}
