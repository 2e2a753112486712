"""Targets on a Ray cluster on this machine: two workers, one of them killed on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from tests.small import QUIET
from typer.testing import CliRunner

from instil.cli import app
from instil.errors import ConfigError, EngineError
from instil.pipeline import cell, cluster
from instil.pipeline.cluster import placed, teach_on_ray
from instil.recipe.recipe import Recipe
from instil.targets.store import TargetStore

ROWS = 400


@pytest.fixture
def recipe(model_folders: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    rows = [{"input": f"number {n}, and {n * n % 97}"} for n in range(ROWS)]
    (tmp_path / "inputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "demos.jsonl").write_text('{"input": "zero", "output": "0"}\n' * 3)
    (tmp_path / "eval.jsonl").write_text('{"input": "ten", "output": "10"}\n')
    return {
        "model": str(model_folders["llama"]),
        "task": {
            "name": "files",
            "inputs": str(tmp_path / "inputs.jsonl"),
            "demos": str(tmp_path / "demos.jsonl"),
            "eval": str(tmp_path / "eval.jsonl"),
        },
        "prompt": {"format": "plain"},
        "teacher": {"max_new_tokens": 6, "samples": 2, "sampling_temperature": 1.0},
        "evaluation": {"batch_size": 8},
        "dtype": "float32",
    }


@pytest.fixture
def alone() -> Iterator[None]:
    """One thread, as a worker has on this machine: more of them round in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def content(store: TargetStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.path.iterdir())}


def workers() -> list[psutil.Process]:
    return [
        one
        for one in psutil.Process().children(recursive=True)
        if one.is_running() and "Worker" in "".join(one.cmdline()[:1])
    ]


class Killer(threading.Thread):
    """Kills a worker as soon as something is written into a folder."""

    def __init__(self, folder: Path, pattern: str) -> None:
        super().__init__(daemon=True)
        self.folder, self.pattern, self.killed = folder, pattern, 0

    def run(self) -> None:
        while not any(self.folder.glob(self.pattern)):
            time.sleep(0.01)
        self.killed = workers()[0].pid
        os.kill(self.killed, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("pattern", ["completions-*.jsonl", "*/shard-*.arrow"])
def test_two_workers_make_the_store_of_one_process_even_if_one_is_killed(
    recipe: dict[str, Any], tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PIECES", 20)
    settings = Recipe.parse(recipe)
    one = cell.teach(settings, store=tmp_path / "one", display=QUIET).store
    assert one is not None
    killer = Killer(tmp_path / "two", pattern)
    killer.start()
    two = teach_on_ray(settings, tmp_path / "two", workers=2, display=QUIET)
    killer.join(60)
    assert killer.killed
    assert not psutil.pid_exists(killer.killed)
    assert content(two) == content(one)
    assert len(two) == 2 * ROWS
    assert not ray.is_initialized()
    reads = cell.teach(settings, store=tmp_path / "two", display=QUIET)
    assert reads.store is not None
    assert reads.store.path == two.path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_error_of_a_worker_is_told_as_it_is(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"title": "t", **recipe}))
    output = tmp_path / "targets"
    Path(recipe["task"]["inputs"]).write_text('{"input": "' + "long " * 400 + '"}\n')
    found = CliRunner().invoke(
        app, ["targets", "build", str(path), "--output", str(output), "--on", "ray", "--quiet"]
    )
    assert found.exit_code == 2
    assert "AlignmentError: input 1: the teacher prompt has 2,048 tokens" in found.output
    assert "Traceback" not in found.output


def test_what_workers_cannot_do_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    made = Recipe.parse(recipe | {"training": {"make_inputs": 3}})
    with pytest.raises(ConfigError, match=r"rows that are given.*training.make_inputs"):
        teach_on_ray(made, tmp_path, workers=1, display=QUIET)


def test_without_ray_it_says_what_to_install(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'instil\[ray\]'"):
        teach_on_ray(Recipe.parse(recipe), tmp_path, workers=1, display=QUIET)


@pytest.mark.parametrize(
    ("machines", "workers", "needs"),
    [
        ([{"CPU": 2.0}], 2, {"num_cpus": 1}),
        ([{"CPU": 16.0}, {"CPU": 16.0}], 3, {"num_cpus": 8}),
        ([{"CPU": 16.0}] * 3, 2, {"num_cpus": 16}),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0}], 4, {"num_cpus": 4, "num_gpus": 1}),
    ],
)
def test_each_worker_has_a_place(
    machines: list[dict[str, float]], workers: int, needs: dict[str, int]
) -> None:
    assert placed(machines, workers) == needs


@pytest.mark.parametrize("machine", [{"CPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}])
def test_more_workers_than_places_are_refused(machine: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"no place for all .*3 workers.*at most 2 workers"):
        placed([machine], 3)


def test_a_cluster_that_does_not_answer_is_an_error(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")

    def fails(**settings: object) -> None:
        raise ConnectionError("no such cluster")

    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(EngineError, match=r"no such cluster.*RAY_ADDRESS \(now nowhere\)"):
        teach_on_ray(Recipe.parse(recipe), tmp_path, workers=1, display=QUIET)


def test_workers_need_a_cluster(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"title": "t", **recipe}))
    found = CliRunner().invoke(
        app, ["targets", "build", str(path), "--output", str(tmp_path / "t"), "--workers", "3"]
    )
    assert found.exit_code == 2
    assert "--workers needs --on ray" in found.output


def test_another_cluster_is_unknown(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"title": "t", **recipe}))
    output = str(tmp_path / "targets")
    found = CliRunner().invoke(
        app, ["targets", "build", str(path), "--output", output, "--on", "spark"]
    )
    assert found.exit_code == 2
    assert "--on spark: there is no such cluster; allowed: ray" in found.output
