"""`instil targets build`, and runs and studies that read what it has built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import save_tiny
from tests.small import reused
from typer.testing import CliRunner

from instil.cli import app
from instil.results.schema import Results
from instil.targets.store import TargetStore

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def instil(monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command in this process: its exit status and all that it printed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def go(*arguments: Any) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(one) for one in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return go


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Word problems, in the files that the task knows."""
    root = tmp_path / "data"
    for file, word in (("gsm8k/train", "Train"), ("gsm8k/test", "Test"), ("svamp/test", "There")):
        path = root / f"{file}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = (
            {
                "body": "He",
                "question": f"{word} {n}?",
                "answer": f"{n}" if "svamp" in file else f"#### {n}",
            }
            for n in range(20)
        )
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def word_problems(tmp_path: Path, data: Path, **more: Any) -> Path:
    settings = {
        "model": str(save_tiny(tmp_path / "model", "llama", window=2048)),
        "task": {"name": "gsm8k", "folder": str(data)},
        "dtype": "float32",
        "demonstrations": {"k": 2},
        "teacher": {"completions": "gold", "max_new_tokens": 4},
        "student": {"save": False},
        "training": {"rows": 6, "max_steps": 2, "batch_size": 3},
        "evaluation": {"rows": 2},
        "grid": {"method": ["zero_shot", "distillation"], "tuning.r": [2, 4]},
    }
    return _recipe(tmp_path, settings | more)


def files(tmp_path: Path, model: Path, jsonl: Callable[..., Path]) -> Path:
    def rows(*words: str) -> list[dict[str, str]]:
        return [{"input": word, "output": str(len(word))} for word in words]

    settings = {
        "model": str(model),
        "task": {
            "name": "files",
            "demos": str(jsonl("demos.jsonl", rows("one", "three"))),
            "inputs": str(jsonl("inputs.jsonl", rows("four", "twelve", "a"))),
            "eval": str(jsonl("eval.jsonl", rows("eleven"))),
        },
        "prompt": {"format": "plain"},
        "dtype": "float32",
        "training": {"max_steps": 2},
    }
    return _recipe(tmp_path, settings)


def _recipe(tmp_path: Path, settings: dict[str, Any]) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def state(store: Path) -> dict[str, int]:
    """When each file in a folder of stores was written."""
    return {
        str(path.relative_to(store)): path.stat().st_mtime_ns
        for path in store.rglob("*")
        if path.is_file()
    }


def spent(store: Path) -> dict[str, Any]:
    (told,) = store.glob("*.spent.json")
    measured: dict[str, Any] = json.loads(told.read_text())["teach"]
    return measured


def test_a_study_of_word_problems_reads_what_was_built(
    tmp_path: Path, data: Path, instil: Command
) -> None:
    recipe, store = word_problems(tmp_path, data), tmp_path / "store"
    status, told = instil("targets", "build", recipe, "--output", store, "--quiet")
    (built,) = (path for path in store.iterdir() if path.is_dir())
    assert (status, told.count(f"{built}: ")) == (0, 1)
    assert len(TargetStore.open(built)) == 6
    before = state(store)
    assert instil("targets", "build", recipe, "--output", store, "--quiet")[0] == 0
    assert state(store) == before

    study = tmp_path / "study"
    changes = ("--set", f"teacher.store={store}", "--output", study, "--quiet")
    status, output = instil("run", recipe, *changes)
    assert status == 0, output
    assert state(store) == before
    cells = [Results.read(path) for path in study.glob("cells/*/results.json")]
    taught = [cell for cell in cells if cell.method == "distillation"]
    assert (len(cells), len(taught)) == (3, 2)
    for cell in taught:
        assert reused(cell) == ["teach"]
        assert cell.phases["teach"].tokens == spent(store)["tokens"]
        assert cell.phases["teach"].wall_seconds == spent(store)["wall_seconds"]
    assert not list(study.glob("targets/*"))


def test_a_study_of_files_reads_what_was_built(
    tmp_path: Path, model_folders: dict[str, Path], jsonl: Callable[..., Path], instil: Command
) -> None:
    recipe, store = files(tmp_path, model_folders["llama"], jsonl), tmp_path / "store"
    assert instil("targets", "build", recipe, "--output", store, "--quiet")[0] == 0
    before = state(store)
    study = tmp_path / "study"
    changes = ("--set", f"teacher.store={store}", "--output", study, "--quiet")
    status, output = instil("run", recipe, *changes)
    assert status == 0, output
    assert state(store) == before
    (path,) = study.glob("cells/*/results.json")
    costs = Results.read(path).phases["teach"]
    assert costs.tokens == spent(store)["tokens"] > 0
    assert costs.wall_seconds == spent(store)["wall_seconds"]


def test_the_folder_that_is_named_on_the_command_line_is_built(
    tmp_path: Path, model_folders: dict[str, Path], jsonl: Callable[..., Path], instil: Command
) -> None:
    recipe, store = files(tmp_path, model_folders["llama"], jsonl), tmp_path / "store"
    changes = ("--set", f"teacher.store={tmp_path / 'other'}", "--output", store, "--quiet")
    assert instil("targets", "build", recipe, *changes)[0] == 0
    assert state(store)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "changes",
    [
        ("objective={name: cross_entropy}",),
        ("objective=[{name: cross_entropy}, {name: hidden_state}]",),
        ("grid.method=[zero_shot, in_context, pattern_fine_tuning]",),
    ],
    ids=["gold answers alone", "hidden states", "no distillation"],
)
def test_a_recipe_without_stored_targets_is_refused(
    tmp_path: Path, data: Path, instil: Command, changes: tuple[str, ...]
) -> None:
    recipe = word_problems(tmp_path, data)
    told = [part for change in changes for part in ("--set", change)]
    status, output = instil("targets", "build", recipe, "--output", tmp_path / "store", *told)
    assert status == 2
    assert f"ConfigError: no cell of {recipe} stores targets" in output
    assert "and a loss that reads targets" in output
    assert not (tmp_path / "store").exists()


def test_label_tasks_are_for_instil_run(tmp_path: Path, instil: Command) -> None:
    status, output = instil("targets", "build", "sentiment-smollm2", "--output", tmp_path / "store")
    assert status == 2
    assert "no cell of sentiment-smollm2 stores targets" in output
    assert "for a classification task, use `instil run`" in output
    assert not (tmp_path / "store").exists()


def test_a_folder_of_stores_is_shown_store_by_store(
    tmp_path: Path, data: Path, instil: Command
) -> None:
    recipe, folder = word_problems(tmp_path, data), tmp_path / "stores"
    changes = ("--set", "grid.demonstrations.k=[1, 2]", "--output", folder, "--quiet")
    assert instil("targets", "build", recipe, *changes)[0] == 0
    one, other = sorted(path for path in folder.iterdir() if path.is_dir())
    status, told = instil("targets", "info", folder, "--json")
    assert status == 0
    assert {name: store["rows"] for name, store in json.loads(told).items()} == {
        one.name: 6,
        other.name: 6,
    }
    alone = json.loads(instil("targets", "info", one, "--json")[1])
    assert alone["rows"] == 6
    assert alone["teacher"] == f"{tmp_path / 'model'}, float32"
    assert instil("targets", "verify", folder)[0] == 0
    (other / "shard-00000.arrow").unlink()
    status, told = instil("targets", "verify", folder)
    assert status == 1
    assert f"{other.name}: shard-00000.arrow: missing" in told
    assert f"{one}: 1 shard, no problem found" in told
    status, told = instil("targets", "info", tmp_path / "data")
    assert (status, "is not a target store" in told) == (2, True)
