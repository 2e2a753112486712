"""What a run will need, foretold from a small part of it, beside what it then needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.small import QUIET

from instil.errors import ConfigError
from instil.methods import Phase
from instil.pipeline import cell
from instil.pipeline.given import Given
from instil.pipeline.planning import CARD_OVERHEAD, Foretold, PhasePlan, foretell
from instil.recipe.recipe import Recipe
from instil.recipe.usual import usual
from instil.results.schema import RESULTS, Results
from instil.tasks.files import Files

PHASES: tuple[Phase, ...] = ("generate", "teach", "train", "evaluate")
WORDS = [f"the {n} of {m}" for n in ("first", "second", "third", "last") for m in range(12)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    def write(name: str, rows: list[str]) -> str:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{row}\n" for row in rows))
        return str(path)

    rows = [f'{{"input": "{word}", "output": "{word[-4:]}"}}' for word in WORDS]
    return {
        "inputs": write("inputs", rows[:32]),
        "eval": write("eval", rows[32:]),
        "demos": write("demos", ['{"input": "zero", "output": "0"}']),
    }


def settings(model: Path, files: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "model": str(model),
        "task": {"name": "files", **files},
        "prompt": {"format": "plain"},
        "training": {"max_steps": 12, "batch_size": 8},
        "evaluation": {"drift_tokens": 200, "general_prompts": 14},
        "keep": {"source": "none"},
        "dtype": "float32",
        **more,
    }


def planned(recipe: dict[str, Any]) -> Foretold:
    read = Recipe.parse(usual(recipe))
    assert isinstance(read.task, Files)
    return foretell(read, given=Given.read(read, read.task), display=QUIET)


@pytest.mark.parametrize(("family", "batch_size"), [("llama", 8), ("gpt2", 16)])
def test_tokens_are_those_of_the_run(
    model_folders: dict[str, Path],
    files: dict[str, str],
    tmp_path: Path,
    family: str,
    batch_size: int,
) -> None:
    recipe = settings(model_folders[family], files)
    recipe["training"]["batch_size"] = batch_size
    found = planned(recipe)
    folder = cell.run(Recipe.parse(usual(recipe)), tmp_path / "run", display=QUIET)
    run = Results.read(folder / RESULTS)
    for name in PHASES:
        near = 0.1 if name == "train" else 0.25
        assert found.phases[name].tokens == pytest.approx(run.phases[name].tokens, rel=near), name
    assert found.rows == (32, 16)
    assert found.steps == (12, 12)
    assert run.training is not None
    assert found.parameters[1] == run.training.trainable_parameters


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_memory_is_that_of_the_run(
    model_folders: dict[str, Path], files: dict[str, str], tmp_path: Path, family: str
) -> None:
    """Each in a process of its own: what a process has done before stays in its memory."""
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(settings(model_folders[family], files)))
    script = Path(__file__).parents[3] / "benchmarks" / "planning.py"
    for what, output in (("plan", "plan.json"), ("run", "run")):
        subprocess.run([sys.executable, script, what, path, tmp_path / output], check=True)
    found = json.loads((tmp_path / "plan.json").read_text())["phases"]
    run = Results.read(tmp_path / "run" / RESULTS)
    for name in PHASES:
        needed = run.phases[name].peak_rss_mb
        assert found[name]["memory_mb"] == pytest.approx(needed, rel=0.25), name


def test_a_training_that_may_end_early_has_two_times(
    model_folders: dict[str, Path], files: dict[str, str]
) -> None:
    recipe = settings(model_folders["llama"], files)
    recipe["training"] = {"batch_size": 8, "until": "plateau"}
    found = planned(recipe)
    assert found.steps == (60, 600)
    least, most = found.seconds
    assert most - least == pytest.approx(
        found.phases["train"].most_seconds - found.phases["train"].seconds
    )
    assert most > least > 0


def test_samples_are_counted_once(model_folders: dict[str, Path], files: dict[str, str]) -> None:
    recipe = settings(model_folders["llama"], files)
    recipe["teacher"] = {"completions": "teacher", "sampling_temperature": 1.0}
    one = planned(recipe)
    recipe["teacher"]["samples"] = 4
    four = planned(recipe)
    assert four.phases["teach"].tokens == pytest.approx(4 * one.phases["teach"].tokens, rel=0.25)
    assert four.rows == one.rows


def test_turns_of_a_conversation_are_one_lesson(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    said = [
        {"role": role, "content": f"{role} {n}"} for n in range(4) for role in ("user", "assistant")
    ]
    for name, count in (("inputs", 24), ("eval", 2)):
        rows = [
            {"messages": [{"role": "system", "content": "Be short."}, *said]}
            | {"id": f"{name}{number}"}
            for number in range(count)
        ]
        for number, row in enumerate(rows):
            row["messages"] = [
                *row["messages"][:1],
                {"role": "user", "content": f"{name} {number} begins"},
                *row["messages"][2:],
            ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {name: str(tmp_path / f"{name}.jsonl") for name in ("inputs", "eval")}
    recipe = settings(model_folders["llama"], task)
    recipe["task"]["context_from_logs"] = True
    recipe["prompt"] = {"format": "chat"}
    recipe["teacher"] = {"completions": "gold"}
    recipe["training"] = {"epochs": 10, "batch_size": 8}
    found = planned(recipe)
    assert found.rows[0] == 24 * 4
    assert found.steps == (30, 30)  # three batches of eight conversations, ten times


def test_a_plan_is_made_by_one_process(
    model_folders: dict[str, Path], files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instil.system.processes.count", lambda: 2)
    with pytest.raises(ConfigError, match="one process plans for all; got: 2 processes"):
        planned(settings(model_folders["llama"], files))


def test_nothing_is_kept(model_folders: dict[str, Path], files: dict[str, str]) -> None:
    folder = Path(files["inputs"]).parent
    before = sorted(folder.iterdir())
    planned(settings(model_folders["llama"], files))
    assert sorted(folder.iterdir()) == before


def test_a_card_holds_what_fits() -> None:
    plan = PhasePlan(seconds=1, tokens=1, memory_mb=1, most_seconds=1)
    found = Foretold({"train": plan}, (1, 1), (1, 1), None, 16.0, 5.0, (1, 1), 1.0)
    needed, fits = found.on_card(24)
    assert needed == 21.0 + CARD_OVERHEAD
    assert fits  # 24 GB are 22.4 GiB
    assert not found.on_card(23)[1]


def test_an_engine_is_not_foretold(model_folders: dict[str, Path], files: dict[str, str]) -> None:
    recipe = settings(model_folders["llama"], files, teacher={"engine": {"name": "vllm"}})
    with pytest.raises(ConfigError, match=r"cannot be foretold.*teacher.engine: vllm"):
        planned(recipe)
