"""The shipped recipes: each validates, and each of its methods runs two steps on a tiny model of its family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import save_tiny
from typer.testing import CliRunner

from instil.cli import app
from instil.pipeline.worker import run_cell
from instil.recipe.grid import PlannedCell, override, plan, read_recipe
from instil.recipe.recipe import Recipe
from instil.recipe.shipped import find, shipped
from instil.system.progress import Display
from instil.tasks.gsm8k import GSM8K
from instil.tasks.nli import NLI
from instil.tasks.paraphrase import Paraphrase
from instil.tasks.sentiment import Sentiment
from instil.tasks.topic import Topic

FAMILY = {
    "opt": "opt",
    "smollm2": "llama",
    "qwen3": "qwen3",
    "llama-3.2": "llama",
}  # a word of the recipe's name -> its tiny model
TASKS = (NLI, Paraphrase, Sentiment, Topic)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny copy of every set that a task knows."""
    root = tmp_path_factory.mktemp("data")
    for task in TASKS:
        for known in task.sets.values():
            path = root / known.file
            path.parent.mkdir(parents=True, exist_ok=True)
            words = [w for w in known.labels if not w.isdigit()] or list(known.labels)
            rows = [_row(known.file_fields, words[n % len(words)], n) for n in range(60)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for written in GSM8K.sets.values():
        path = root / written.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(_problem(path, n)) + "\n" for n in range(60)))
    return root


def _row(renamed: Mapping[str, str], label: str, number: int) -> dict[str, Any]:
    fields = ("premise", "hypothesis", "first", "second", "text", *renamed.values())
    return {name: f"{name} {number}" for name in fields} | {"label": label}


def _problem(path: Path, number: int) -> dict[str, str]:
    asked = {"body": "It is", "question": f"{path.stem} {path.parent.stem} {number}?"}
    answer = f"{number}" if path.parent.name == "svamp" else f"{number}\n#### {number}"
    return asked | {"answer": answer}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Family -> folder of a tiny model with a long window."""
    root = tmp_path_factory.mktemp("long")
    folders = {name: save_tiny(root / name, name, window=4096) for name in set(FAMILY.values())}
    # Llama 3's template writes a date, and the shipped recipe sets it.
    template = folders["llama"] / "chat_template.jinja"
    template.write_text("{{ date_string | default('') }}" + template.read_text(encoding="utf-8"))
    return {name: str(folder) for name, folder in folders.items()}


WRITTEN = ["teacher.max_new_tokens=8", "evaluation.at_steps=1", "evaluation.validation_rows=2"]


def tiny(name: str, data: Path, model: str) -> list[PlannedCell]:
    """A recipe's cells with a tiny model, little data and two steps."""
    settings = read_recipe(find(name))
    grids = settings["grid"] if isinstance(settings["grid"], list) else [settings["grid"]]
    for grid in grids:
        if "teacher.model" in grid:
            grid["teacher.model"] = [model]
        for key in ("model", "training.epochs", "training.rows", "evaluation.rows"):
            grid.pop(key, None)
        if "student.keep_layers" in grid:
            grid["student.keep_layers"] = [1]
        grid["seed"] = [0]
    if settings.get("teacher", {}).get("model"):
        settings["teacher"]["model"] = model
    changes = [
        f"model={model}",
        f"task.folder={data}",
        "evaluation.rows=4",
        "evaluation.rows_out_of_domain=2",
        "training.rows=4",
        "training.batch_size=2",
        "training.epochs=null",
        "training.max_steps=2",
        *(WRITTEN if "gsm8k" in name else []),
    ]
    return plan(override(settings, changes)).cells


@pytest.mark.parametrize("name", list(shipped()))
def test_a_recipe_validates_and_says_what_it_is(name: str) -> None:
    settings = read_recipe(find(name))
    assert settings["title"]
    assert settings["description"]
    text = find(name).read_text(encoding="utf-8")
    assert text.startswith(f"# instil run {name}\n")
    result = CliRunner().invoke(app, ["validate", name])
    assert (result.exit_code, "no problem found" in result.output) == (0, True)


AVERAGED = "teacher=contexts4+calibrationbatch"
SINGLE = "teacher=contexts1+calibrationnone"
NAMES = {
    "gsm8k-smollm2": [
        "zero_shot",
        "in_context",
        "pattern_fine_tuning",
        "distillation",
        "distillation,k=0",
        "in_context,answers=shuffled",
        "distillation,answers=shuffled",
    ],
    "nli-smollm2": [
        *(f"zero_shot,seed={seed}" for seed in (0, 1)),
        *(f"in_context,k={k},seed={seed}" for k in (1, 8) for seed in (0, 1)),
        *(f"vanilla_fine_tuning,seed={seed}" for seed in (0, 1)),
        *(f"pattern_fine_tuning,seed={seed}" for seed in (0, 1)),
        *(f"distillation,k={k},seed={seed}" for k in (1, 8) for seed in (0, 1)),
        f"in_context,{AVERAGED},k=8,seed=0",
        f"distillation,{AVERAGED},k=8,seed=0",
    ],
    "topic-smollm2": [
        *(f"zero_shot,seed={seed}" for seed in (0, 1, 2)),
        *(f"in_context,{SINGLE},seed={seed}" for seed in (0, 1, 2)),
        *(f"in_context,{AVERAGED},seed={seed}" for seed in (0, 1, 2)),
        *(f"distillation,{AVERAGED},seed={seed}" for seed in (0, 1, 2)),
        f"distillation,{SINGLE},seed=0",
        f"distillation,{AVERAGED},over=labels,seed=0",
        f"distillation,{AVERAGED},keep_layers=15,seed=0",
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_is_named_after_the_keys_that_matter_to_it(name: str) -> None:
    cells = plan(read_recipe(find(name))).cells
    assert [cell.name.rpartition("-")[0] for cell in cells] == NAMES[name]


def test_every_combination_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    check = Recipe.check.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Recipe], settings: Any, **more: Any) -> Any:
        seen.append(json.dumps(settings))
        return check(cls, settings, **more)

    monkeypatch.setattr(Recipe, "check", classmethod(counted))
    cells = plan(read_recipe(find("nli-smollm2"))).cells
    assert len(cells) < len(seen) == len(set(seen)) < 6 * len(cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(shipped()))
def test_every_method_and_tuning_of_a_recipe_runs_two_steps(
    name: str, data: Path, models: dict[str, str], tmp_path: Path
) -> None:
    (family,) = (model for word, model in FAMILY.items() if word in name)
    chosen: dict[tuple[str, ...], PlannedCell] = {}
    for cell in tiny(name, data, models[family]):
        recipe = cell.recipe
        key = (recipe.method, recipe.tuning.name, recipe.task.name, str(recipe.student.keep_layers))
        chosen.setdefault(key, cell)
    assert len(chosen) > 1
    for cell in chosen.values():
        told = run_cell(
            cell.recipe,
            tmp_path / cell.name,
            store=tmp_path / "store",
            display=Display(quiet=True),
        )
        assert told.methods[0].scores
        assert told.training is None or told.training.steps == 2


def test_a_recipe_is_listed_shown_and_copied(tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["recipes", "list"])
    assert all(name in listed.output for name in shipped())
    name = next(iter(shipped()))
    text = find(name).read_text(encoding="utf-8")
    assert runner.invoke(app, ["recipes", "show", name]).output == text
    copied = runner.invoke(app, ["recipes", "copy", name, str(tmp_path)])
    schema, own = (tmp_path / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)
    assert own == text
    assert json.loads(Path(schema.partition("$schema=")[2]).read_text(encoding="utf-8"))["$schema"]
    assert copied.exit_code == 0
    assert runner.invoke(app, ["recipes", "copy", name, str(tmp_path)]).exit_code == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([], None),
        (["task.pattern={txt}"], "txt"),
        (["task.label=kind"], "kind"),
        (["training.rows=5000"], "training.rows is 5000, but the training set has 20"),
    ],
)
def test_validating_reads_the_rows_of_local_files(
    tmp_path: Path, changes: list[str], words: str | None
) -> None:
    for name in ("train", "test"):
        rows = [{"text": f"{name} {n}", "label": ("good", "bad")[n % 2]} for n in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "name": "classification",
        "folder": str(tmp_path),
        "train": "train.jsonl",
        "in_domain": {"own": "test.jsonl"},
        "pattern": "{text} is",
        "verbalizer": {"good": ["good"], "bad": ["bad"]},
    }
    recipe = tmp_path / "mine.yaml"
    grid = {
        "training": {"rows": 10},
        "grid": {"method": ["zero_shot", "in_context"], "seed": [0, 1]},
    }
    recipe.write_text(yaml.safe_dump({"model": "m", "task": task, **grid}))
    told = [part for change in changes for part in ("--set", change)]
    result = CliRunner().invoke(app, ["validate", str(recipe), *told])
    assert result.exit_code == (0 if words is None else 2), result.output
    if words is not None:
        said = " ".join(result.output.split())
        assert "the recipe has 1 problem" in said
        assert words in said


def test_an_unknown_recipe_is_told_with_the_nearest() -> None:
    result = CliRunner().invoke(app, ["validate", "nli-smolm2"])
    assert result.exit_code == 2
    assert "did you mean 'nli-smollm2'?" in result.output
