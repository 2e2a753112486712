"""From a recipe file to cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instil.errors import ConfigError
from instil.losses.label_kl import LabelKL
from instil.models.tuning import LoRA
from instil.recipe.canonical import effective
from instil.recipe.grid import override, plan, read_recipe
from instil.recipe.recipe import Recipe

ALL = ["zero_shot", "in_context", "vanilla_fine_tuning", "pattern_fine_tuning", "distillation"]


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "one", "label": "a"}) + "\n")
    task = {
        "name": "classification",
        "pattern": "{text}",
        "verbalizer": {"a": ["A"], "b": ["B"]},
        "train": str(path),
        "in_domain": {"here": str(path)},
    }
    return {"model": "some/model", "task": task}


def names(settings: dict[str, Any]) -> list[str]:
    return [cell.name.rpartition("-")[0] for cell in plan(settings).cells]


def test_a_grid_is_all_combinations_in_order(base: dict[str, Any]) -> None:
    grid = {"demonstrations.k": [1, 4], "seed": [0, 1]}
    assert names(base | {"grid": grid}) == ["k=1,seed=0", "k=1,seed=1", "k=4,seed=0", "k=4,seed=1"]


def test_without_a_grid_there_is_one_cell(base: dict[str, Any]) -> None:
    (cell,) = plan(base).cells
    assert cell.varied == {}
    assert cell.name.startswith("cell-")


def test_several_grids_add_up_and_what_they_share_is_one_cell(base: dict[str, Any]) -> None:
    grids = [{"seed": [0, 1]}, {"seed": [1, 2]}]
    assert names(base | {"grid": grids}) == ["seed=0", "seed=1", "seed=2"]


def test_combinations_that_are_the_same_run_are_one_cell(base: dict[str, Any]) -> None:
    grid = {
        "method": ALL,
        "tuning": [{"name": "full"}, {"name": "lora"}],
        "demonstrations.k": [1, 4],
        "objective.alpha": [0.5, 1.0],
        "teacher.contexts": [1, 2],
    }
    cells = plan(base | {"grid": grid}).cells
    count = {m: sum(c.recipe.method == m for c in cells) for m in ALL}
    assert count == {
        "zero_shot": 1,
        "in_context": 2 * 2,
        "vanilla_fine_tuning": 2,
        "pattern_fine_tuning": 2,
        "distillation": 2**4,
    }
    varied = {c.recipe.method: set(c.varied) for c in cells}
    assert varied["zero_shot"] == {"method"}
    assert varied["in_context"] == {"method", "demonstrations.k", "teacher.contexts"}
    assert varied["pattern_fine_tuning"] == {"method", "tuning"}
    assert varied["distillation"] == set(grid)


def test_a_method_keeps_what_it_reads(base: dict[str, Any]) -> None:
    grid = {"method": ["in_context"], "training.rows": [10], "training.learning_rate": [1.0]}
    (cell,) = plan(base | {"grid": grid}).cells
    assert cell.recipe.training.rows == 10  # the pool is what these leave
    assert cell.recipe.training.learning_rate != 1.0
    assert effective(cell.recipe) == cell.recipe


def test_a_cell_has_another_name_when_a_setting_or_the_data_change(
    base: dict[str, Any], tmp_path: Path
) -> None:
    before = plan(base).cells[0].name
    assert plan(base | {"title": "other"}).cells[0].name == before
    assert plan(base | {"seed": 1}).cells[0].name != before
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "two", "label": "a"}) + "\n")
    assert plan(base).cells[0].name != before


def test_the_order_of_the_labels_is_part_of_a_cell_s_name(base: dict[str, Any]) -> None:
    before = plan(base).cells[0].name
    base["task"] |= {"verbalizer": {"b": ["B"], "a": ["A"]}}
    assert plan(base).cells[0].name != before


def test_every_problem_of_every_cell_is_told_once(base: dict[str, Any]) -> None:
    settings = base | {
        "trainig": {},
        "grid": {"method": ["distilation", "zero_shot"], "demonstrations.kk": [1, 2]},
    }
    with pytest.raises(ConfigError) as caught:
        plan(settings)
    text = str(caught.value)
    assert "3 problems" in text
    assert "trainig: unknown key; did you mean 'training'?" in text
    assert "demonstrations.kk: unknown key" in text
    assert text.count("'distilation'") == 1


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"seed": 3}, "must be a list with at least one value"),
        ({"seed": []}, "must be a list with at least one value"),
        ([3], "not a mapping"),
        ({"seed.x": [1]}, "seed is not a section"),
        ({"seed.x": [1], "method": ["none"]}, "(?s)seed is not a section.*method: "),
    ],
)
def test_a_grid_that_is_none_is_refused(base: dict[str, Any], grid: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(base | {"seed": 0, "grid": grid})


def test_settings_are_changed_from_the_command_line(base: dict[str, Any]) -> None:
    changed = override(
        base | {"grid": {"seed": [0, 1]}},
        ["training.epochs=3", "grid.seed=[5]", "grid.demonstrations.k=[1, 2]", "task.prefix=a=b"],
    )
    assert changed["training"] == {"epochs": 3}
    assert changed["grid"] == {"seed": [5], "demonstrations.k": [1, 2]}
    assert changed["task"]["prefix"] == "a=b"
    assert "prefix" not in base["task"]
    assert names(changed) == ["seed=5,k=1", "seed=5,k=2"]


@pytest.mark.parametrize("change", ["seed=7", "teacher.model=m", "teacher.contexts=2"])
def test_a_change_that_the_grid_would_undo_is_refused(base: dict[str, Any], change: str) -> None:
    grid = {"seed": [0, 1], "teacher": [{"contexts": 1}, {"contexts": 8}]}
    varied = change.partition("=")[0].partition(".")[0]
    with pytest.raises(ConfigError, match=rf"the grid varies {varied}.*--set grid\.{varied}="):
        override(base | {"grid": grid}, [change])
    assert override(base | {"grid": grid}, ["teachers=1", "grid.seed=[7]"])["grid"]["seed"] == [7]


def test_a_section_of_the_grid_stands_below_its_settings(base: dict[str, Any]) -> None:
    grid = {
        "method": ["distillation"],
        "teacher.contexts": [3, 4],
        "teacher": [{"calibration": "batch"}],
    }
    found = [cell.recipe.teacher for cell in plan(base | {"grid": grid}).cells]
    assert [(one.contexts, one.calibration) for one in found] == [(3, "batch"), (4, "batch")]


def test_what_a_file_may_hold_beside_a_recipe_is_known(base: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(base | {"gird": {}, "titel": "a", "method": "zeroshot"})
    told = str(caught.value)
    assert "gird: unknown key; did you mean 'grid'?" in told
    assert "titel: unknown key; did you mean 'title'?" in told
    assert "method: unknown value 'zeroshot'; did you mean 'zero_shot'?" in told


@pytest.mark.parametrize(
    ("objective", "top_k", "cells"),
    [
        ([{"name": "logit_mse"}], [16, 64, 1024], 1),
        ([{"name": "cross_entropy"}, {"name": "logit_mse"}], [16, 1024], 1),
        ([{"name": "forward_kl"}, {"name": "logit_mse"}], [16, 256], 1),
        ([{"name": "forward_kl"}, {"name": "logit_mse"}], [256, 1024], 3),
    ],
)
def test_losses_of_raw_logits_settle_what_is_kept(
    objective: list[dict[str, Any]], top_k: list[int], cells: int
) -> None:
    """So cells that would differ in nothing else are one."""
    grid = {"teacher.min_probability": [0.0, 1e-3], "teacher.top_k": top_k}
    found = plan(WRITING | {"objective": objective, "grid": grid}).cells
    assert len(found) == cells
    assert found[0].recipe.teacher.top_k == 256


@pytest.mark.parametrize(
    ("objective", "cells"),
    [
        ({"name": "forward_kl"}, 3),
        ({"name": "forward_kl", "temperature": 2.0}, 1),
        ({"name": "reverse_kl"}, 1),
        ([{"name": "forward_kl"}, {"name": "logit_mse", "top_k": 9}], 1),
    ],
)
def test_draws_that_a_loss_does_not_take_settle_nothing(objective: Any, cells: int) -> None:
    grid = {"teacher.mass_per_draw": [0.0, 0.001, 0.002]}
    settings = WRITING | {"objective": objective, "grid": grid}
    assert len(plan(settings | {"method": "distillation"}).cells) == cells


@pytest.mark.parametrize("change", ["seed", "=1", "seed=[1", "seed=010"])
def test_a_change_that_is_none_is_refused(base: dict[str, Any], change: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        override(base, [change])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b: c", "not YAML"),
        ("- 1", "not a mapping"),
        ("seed: " + "1" * 5000, "not YAML; got: '1{40}' is no value of type int"),
        ("a: " + "[" * 5000, "not YAML; got: the text is nested too deeply"),
    ],
    ids=["colons", "list", "digits", "depth"],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_recipe(path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"evaluation": {"baselines": ["zero_shot"]}},
            "evaluation.baselines: has no effect with a class",
        ),
        (
            {"prompt": {"pattern": "{input}!"}},
            "prompt.pattern: has no effect with a classification",
        ),
        ({"teacher": {"samples": 2, "sampling_temperature": 1}}, "teacher.samples"),
        ({"task": {}, "demonstrations": {"k": 3}}, "task: the key `name` is missing"),
        (
            {"task": {"name": "files"}, "demonstrations": {"k": 3}},
            "demonstrations: has no effect with the task files",
        ),
        (
            {"task": {"name": "files"}, "tuning": {"name": "full"}},
            "cannot be used with free-text answers; use lora",
        ),
        (
            {"evaluation": {"metrics": ["exakt"]}},
            "there is no metric 'exakt'; mend: did you mean 'exact'",
        ),
        (
            {"objective": {"name": "forward_kl"}},
            "forward_kl cannot be used with a classification task",
        ),
        ({"demonstrations": {"k": 1, "answers": "shuffled"}}, "shuffled needs k > 1"),
        ({"objective": {"over": "vocabulary"}, "teacher": {"contexts": 2}}, "over: labels"),
    ],
)
def test_settings_that_would_not_be_read_are_refused(
    base: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(base | settings)


def test_a_setting_of_one_grid_alone_is_told_from_its_default(base: dict[str, Any]) -> None:
    grids = [{"seed": [0]}, {"seed": [0], "student.keep_layers": [3]}]
    assert names(base | {"grid": grids}) == ["cell", "keep_layers=3"]


def test_what_changes_no_number_changes_no_name(base: dict[str, Any]) -> None:
    before = plan(base).cells[0].name
    for more in ({"evaluation": {"batch_size": 2}}, {"student": {"save": False}}):
        assert plan(base | more).cells[0].name == before
    assert plan(base | {"evaluation": {"rows": 2}}).cells[0].name != before


def test_one_run_reached_by_two_grids_is_one_cell(base: dict[str, Any]) -> None:
    grids = [{"seed": [0, 1]}, {"objective.alpha": [0.5, 1.0]}]
    assert names(base | {"grid": grids}) == ["seed=0", "seed=1", "alpha=0.5"]
    sizes = {"evaluation.batch_size": [1, 2]}
    assert len(plan(base | {"grid": sizes}).cells) == 1


def test_what_a_method_does_not_read_makes_no_cells(base: dict[str, Any]) -> None:
    grid = {"method": ["in_context"], "demonstrations.k": [0], "teacher.contexts": [1, 2]}
    assert len(plan(base | {"grid": grid | {"teacher.top_k": [1, 2]}}).cells) == 1
    over = {"objective.over": ["vocabulary"], "teacher.top_k": [1, 2]}
    assert len(plan(base | {"grid": over}).cells) == 2


def test_a_number_that_yaml_reads_as_text_is_a_number(base: dict[str, Any]) -> None:
    cells = plan(base | {"grid": {"training.learning_rate": ["1e-3", "1e-4"]}}).cells
    assert [cell.varied for cell in cells] == [
        {"training.learning_rate": 1e-3},
        {"training.learning_rate": 1e-4},
    ]


def test_a_file_that_is_missing_is_one_problem_among_others(base: dict[str, Any]) -> None:
    base["task"] |= {"train": "nowhere.jsonl"}
    with pytest.raises(ConfigError) as caught:
        plan(base | {"grid": {"seed": [0, -1]}})
    assert "2 problems" in str(caught.value)
    assert "nowhere.jsonl: no such file" in str(caught.value)
    assert "seed" in str(caught.value)


def test_a_key_that_is_no_text_is_refused(base: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="quotation marks"):
        plan(base | {"grid": {True: [1]}})


def test_files_and_local_models_are_part_of_a_cell_s_name(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    rows, demos = tmp_path / "inputs.jsonl", tmp_path / "demos.jsonl"
    for path in (rows, demos, model / "weights"):
        path.write_text("one")
    task = {"name": "files", "demos": str(demos), "inputs": str(rows)}
    settings = {"model": str(model), "task": task}
    seen = {plan(settings).cells[0].name}
    for path in (rows, demos, model / "weights"):
        path.write_text(f"another {path.name}")
        seen.add(plan(settings).cells[0].name)
    assert len(seen) == 4


WRITING: dict[str, Any] = {"model": "some/model", "task": {"name": "gsm8k"}}


def test_a_writing_cell_keeps_what_its_method_reads_and_no_more() -> None:
    teacher = {"completions": "gold", "max_new_tokens": 99, "top_k": 7}
    settings = WRITING | {"teacher": teacher, "objective": [{"name": "logit_mse", "top_k": 9}]}
    grid = {"method": ["zero_shot", "in_context", "pattern_fine_tuning", "distillation"]}
    cells = {cell.recipe.method: cell.recipe for cell in plan(settings | {"grid": grid}).cells}
    assert {recipe.teacher.max_new_tokens for recipe in cells.values()} == {99}
    read = {name: (r.teacher.completions, r.teacher.top_k) for name, r in cells.items()}
    assert read.pop("distillation") == ("gold", 9)  # all that the loss reads
    assert set(read.values()) == {("teacher", 256)}
    assert cells["distillation"].objective.name == "sum"
    assert cells["pattern_fine_tuning"].objective.name == "cross_entropy"
    for recipe in cells.values():
        assert Recipe.parse(recipe.model_dump(mode="json")) == recipe


def test_what_no_writing_method_reads_makes_no_cells() -> None:
    grid = {
        "teacher.completions": ["gold", "teacher"],
        "teacher.top_k": [4, 5],
        "teacher.mass": [0.9, 1.0],
    }
    few = plan(WRITING | {"method": "in_context", "grid": grid}).cells
    assert len(few) == 1
    assert len(plan(WRITING | {"grid": grid}).cells) == 8
    longer = WRITING | {"method": "zero_shot", "grid": {"teacher.max_new_tokens": [8, 9]}}
    assert len(plan(longer).cells) == 2


def test_an_empty_list_does_not_hide_other_problems(base: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(base | {"grid": {"methd": ["zero_shot"], "seed": []}})
    message = str(caught.value)
    assert "2 problems: grid.seed: must be a list with at least one value (got [])" in message
    assert "methd: unknown key; did you mean 'method'?" in message


def test_a_section_of_the_grid_keeps_what_the_recipe_says_of_its_other_keys(
    base: dict[str, Any],
) -> None:
    grid = {"teacher": [{"contexts": 1}, {"contexts": 4}], "tuning": [{"name": "bitfit"}]}
    settings = base | {
        "teacher": {"model": "some/bigger", "calibration": "batch"},
        "tuning": {"name": "lora", "r": 4},
    }
    cells = plan(settings | {"grid": grid}).cells
    told = [(c.recipe.teacher.model, c.recipe.teacher.calibration) for c in cells]
    assert told == [("some/bigger", "batch")] * 2
    assert [c.recipe.teacher.contexts for c in cells] == [1, 4]
    assert {c.recipe.tuning.name for c in cells} == {"bitfit"}  # of another name: replaced
    plain = {"tuning": {"r": 4}, "objective": {"temperature": 2}, "training": {"rows": 20}}
    grid = {"tuning": [{"name": "lora", "alpha": 8}], "objective": [{"name": "label_kl"}]}
    (cell,) = plan(base | plain | {"grid": grid}).cells
    assert isinstance(cell.recipe.tuning, LoRA)
    assert (cell.recipe.tuning.r, cell.recipe.tuning.alpha) == (4, 8)
    assert isinstance(cell.recipe.objective, LabelKL)
    assert cell.recipe.objective.temperature == 2


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("model: a\ntraining: {rows: 20}\nseed: 1\ntraining: {rows: 30}\n")
    with pytest.raises(ConfigError, match=r"the key training occurs twice in line 4"):
        read_recipe(path)
    path.write_text("base: &b {rows: 20}\ntraining: {<<: *b, max_steps: 3}\n")
    assert read_recipe(path)["training"] == {"rows": 20, "max_steps": 3}
    path.write_text("a: &a {rows: 1}\nouter: {b: &b {<<: *a, rows: 3}}\ntraining: {<<: *b}\n")
    assert read_recipe(path)["training"] == {"rows": 3}  # what is merged in is no second key


def test_all_settings_that_are_not_read_are_told(base: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(base | {"prompt": {"pattern": "{input}!"}, "teacher": {"mass": 0.5}})
    message = str(caught.value)
    assert "prompt.pattern: has no effect with a classification task (got '{input}!')" in message
    assert "teacher.mass: has no effect with a classification task (got 0.5)" in message


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"method": "pattern_fine_tuning"},
            "task.unlabelled: pattern_fine_tuning needs labelled training rows",
        ),
        ({"objective": {"alpha": 0.5}}, "objective.alpha: 0.5 also learns from labels"),
    ],
)
def test_labels_are_not_learnt_from_rows_without_any(
    base: dict[str, Any], settings: dict[str, Any], told: str
) -> None:
    task = base["task"] | {"unlabelled": base["task"]["train"]}
    plan(base | {"task": task})
    with pytest.raises(ConfigError, match=told):
        plan(base | {"task": task} | settings)


def test_settings_of_a_prompt_format_are_for_its_cells_alone() -> None:
    prompt = {"completion": "{output}#", "chat_template_kwargs": {"enable_thinking": False}}
    settings = {"model": "m", "task": {"name": "gsm8k"}, "prompt": prompt}
    plain, chat = plan(settings | {"grid": {"prompt.format": ["plain", "chat"]}}).cells
    assert (plain.recipe.prompt.completion, plain.recipe.prompt.chat_template_kwargs) == (
        "{output}#",
        {},
    )
    assert chat.recipe.prompt.completion == " {output}\n"
    assert chat.recipe.prompt.chat_template_kwargs == {"enable_thinking": False}
    grid = {"prompt.format": ["plain", "chat"], "prompt.completion": ["{output}#", "{output}##"]}
    assert len(plan(settings | {"grid": grid}).cells) == 3
