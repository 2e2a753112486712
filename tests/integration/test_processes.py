"""Two processes on processors: what one process makes, and how they end together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.conftest import save_tiny
from tests.small import write_gsm8k

from instil import Run
from instil.errors import ConfigError
from instil.losses import ForwardKL
from instil.pipeline import study
from instil.recipe import grid, sections
from instil.results.schema import PREDICTIONS, RESULTS, Prediction, Results
from instil.system import processes
from instil.system.files import read_lines
from instil.system.progress import Display
from instil.targets.store import TargetStore
from instil.training.launch import check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

STEPS, KILLED_AT = 12, 7  # checkpoints are written each 3 steps
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

# What a process does before the command: {body} stands in a step of training, in one process alone.
AT_A_STEP = """
import os, signal, sys
import instil.cli
from instil.errors import NotFiniteLossError
from instil.training import trainer

real = trainer.DistillationTrainer._step

def step(self, *args, **kwargs):
    if os.environ["RANK"] == "1" and self.state.global_step == {step}:
        {body}
    return real(self, *args, **kwargs)

trainer.DistillationTrainer._step = step
instil.cli.main()
"""

# accelerate allows FSDP on accelerators only: make it take the processor for one.
WITH_FSDP = """
import os
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_TORCH_DEVICE": "cpu"}
os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import distributed

distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
PartialState.wait_for_everyone = lambda self: distributed.barrier()

import instil.cli
from instil.models import roles
from instil.pipeline import labels

real = roles.shared_out

def shared_out(student):
    found = real(student)
    assert found is not None, "FSDP is not at work"
    return found

roles.shared_out = labels.shared_out = shared_out
instil.cli.main()
"""

# The student has a weight that no batch uses.
WITH_UNUSED = """
import torch
import instil.cli
from instil.models.tuning import LoRA

real = LoRA.apply

def apply(self, *args, **kwargs):
    network = real(self, *args, **kwargs)
    network.unused = torch.nn.Parameter(torch.ones(2))
    return network

LoRA.apply = apply
instil.cli.main()
"""


@pytest.fixture(scope="module")
def recipe(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose store has several shards, and whose epoch ends with a batch of one row."""
    folder = tmp_path_factory.mktemp("recipe")

    def rows(name: str, made: list[dict[str, str]]) -> str:
        path = folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        return str(path)

    settings = {
        "model": str(model_folders["llama"]),
        "task": {
            "name": "files",
            "demos": rows("demos.jsonl", [{"input": "sun", "output": "s"}]),
            "inputs": rows(
                "inputs.jsonl", [{"input": f"{a} {b}"} for a in WORDS for b in WORDS][:73]
            ),
            "eval": rows("eval.jsonl", [{"input": word, "output": word[0]} for word in WORDS[:4]]),
        },
        "prompt": {"format": "plain"},
        "teacher": {"max_new_tokens": 5, "sampling_temperature": 1.0},
        "training": {
            "max_steps": STEPS,
            "batch_size": 4,
            "grad_accumulation": 2,
            "learning_rate": 0.003,
        },
        "evaluation": {"baselines": ["zero_shot", "in_context"]},
        "dtype": "float32",
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it: the run's folder, and the store beside it."""
    folder = tmp_path_factory.mktemp("alone")
    changes = [f"teacher.store={folder / 'store'}"]
    plan = grid.plan(grid.override(grid.read_recipe(recipe), changes))
    study.run(plan, folder / "study", display=Display(quiet=True))
    return folder


def launch(
    tmp_path: Path, *arguments: str, before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Starts two processes as `torchrun` does, each with the command or with a script that ends in it."""
    script = tmp_path / "script.py"
    script.write_text(before, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", str(port)),
            *([str(script)] if before else ["-m", "instil"]),
            *arguments,
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def cell_of(folder: Path) -> Path:
    (cell,) = (folder / "study/cells").iterdir()
    return cell


def assert_same_run(got: Path, expected: Path) -> None:
    ours, theirs = (
        load_file(path / "adapter/adapter_model.safetensors") for path in (got, expected)
    )
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        # Where a gradient is next to nothing, Adam makes a step of its rounding.
        torch.testing.assert_close(ours[name], weight, atol=1e-4, rtol=1e-4)
    mine, other = Run(got).results, Run(expected).results
    for got_method, method in zip(mine.methods, other.methods, strict=True):
        assert got_method.method == method.method
        close, wanted = got_method.scores[0].fidelity, method.scores[0].fidelity
        assert (close is None) == (wanted is None) == (method.method == "in_context")
        if close and wanted:
            assert close.kl_to_teacher == pytest.approx(wanted.kl_to_teacher, abs=1e-4)
    assert mine.training is not None
    assert other.training is not None
    assert [step for step, _ in mine.training.loss] == [step for step, _ in other.training.loss]
    assert [loss for _, loss in mine.training.loss] == pytest.approx(
        [loss for _, loss in other.training.loss], abs=1e-4
    )


def store_of(folder: Path) -> TargetStore:
    (index,) = folder.glob("*/store.json")
    return TargetStore.open(index.parent)


def test_two_processes_one_of_them_killed_and_started_again_make_what_one_makes(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    arguments = ("run", str(recipe), "--output", str(tmp_path / "study"), "--quiet")
    store = ("--set", f"teacher.store={tmp_path / 'store'}")
    kill = AT_A_STEP.format(step=KILLED_AT, body="os.kill(os.getpid(), signal.SIGKILL)")
    killed = launch(tmp_path, *arguments, *store, before=kill)
    assert killed.returncode != 0
    (partial,) = (tmp_path / "study/cells").glob("*.partial")
    assert (partial / "checkpoints/checkpoint-6").is_dir()
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.arrow")}

    again = launch(tmp_path, *arguments, *store)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("1 cell done") == 1, again.stdout
    assert_same_run(cell_of(tmp_path), cell_of(alone))
    assert not (cell_of(tmp_path) / "scratch").exists()
    assert {path: path.stat().st_mtime_ns for path in stored} == stored

    ours, theirs = store_of(tmp_path / "store"), store_of(alone / "store")
    assert len(ours.info.shards) == len(theirs.info.shards) > 1
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.row, mine.completion) == (other.row, other.completion)
        assert torch.equal(mine.targets.ids_NK, other.targets.ids_NK)
        torch.testing.assert_close(mine.targets.logprobs_NK, other.targets.logprobs_NK)


@pytest.mark.timeout(450)
def test_two_machines_make_what_one_process_makes(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    """Two launchers that meet at an address, as on two machines that share a disk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    begun = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--nproc-per-node", "1", "--node-rank", str(rank), "--rdzv-id", "instil"),
                *("--rdzv-backend", "c10d", "--rdzv-endpoint", meeting),
                *("-m", "instil", "run", str(recipe), "--output", str(tmp_path / "study")),
                *("--set", f"teacher.store={tmp_path / 'store'}", "--quiet"),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [one.communicate(timeout=400) for one in begun]
    assert [one.returncode for one in begun] == [0, 0], said
    assert "".join(out for out, _ in said).count("1 cell done") == 1, said
    assert_same_run(cell_of(tmp_path), cell_of(alone))
    assert len(store_of(tmp_path / "store")) == len(store_of(alone / "store"))


def test_two_processes_learn_hidden_states_of_a_lower_layer_as_one_does(
    recipe: Path, tmp_path: Path
) -> None:
    changes = ["objective={name: hidden_state, layers: [1]}", "training.max_steps=3"]
    plan = grid.plan(grid.override(grid.read_recipe(recipe), changes))
    study.run(plan, tmp_path / "alone/study", display=Display(quiet=True))
    arguments = ("run", str(recipe), "--output", str(tmp_path / "study"), "--quiet")
    made = launch(tmp_path, *arguments, *(part for one in changes for part in ("--set", one)))
    assert made.returncode == 0, made.stderr
    assert_same_run(cell_of(tmp_path), cell_of(tmp_path / "alone"))


def test_two_processes_do_not_wait_for_a_weight_that_no_batch_uses(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    arguments = ("run", str(recipe), "--output", str(tmp_path / "study"), "--quiet")
    made = launch(tmp_path, *arguments, before=WITH_UNUSED)
    assert made.returncode == 0, made.stderr
    assert_same_run(cell_of(tmp_path), cell_of(alone))


def test_fsdp_trains_to_the_weights_of_one_process(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    arguments = ("run", str(recipe), "--output", str(tmp_path / "study"), "--quiet")
    made = launch(tmp_path, *arguments, before=WITH_FSDP)
    assert made.returncode == 0, made.stderr
    assert_same_run(cell_of(tmp_path), cell_of(alone))


def test_an_error_in_one_process_is_told_once_and_ends_both(recipe: Path, tmp_path: Path) -> None:
    arguments = ("run", str(recipe), "--output", str(tmp_path / "study"), "--quiet")
    fail = AT_A_STEP.format(step=2, body='raise NotFiniteLossError("the loss is nan at step 3")')
    made = launch(tmp_path, *arguments, before=fail)
    assert made.returncode != 0
    assert made.stderr.count("NotFiniteLossError: the loss is nan at step 3") == 1, made.stderr
    assert "closed by peer" not in made.stderr
    assert not list((tmp_path / "study/cells").iterdir())


def test_an_error_in_both_processes_is_told_once_and_nothing_is_written(
    recipe: Path, tmp_path: Path
) -> None:
    arguments = ("run", str(recipe), "--output", str(tmp_path / "study"), "--quiet")
    made = launch(tmp_path, *arguments, "--set", f"model={tmp_path}")
    assert made.returncode != 0
    told = f"UnknownModelError: {tmp_path} is a folder without a model"
    assert made.stderr.count(told) == 1, made.stderr
    assert not list((tmp_path / "study/cells").iterdir())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A study whose answers are written: a method that learns, judged on the way, and one that does not."""
    folder = tmp_path_factory.mktemp("written")
    return {
        "model": str(save_tiny(folder / "model", "llama", window=4096)),
        "task": {"name": "gsm8k", "folder": str(write_gsm8k(folder))},
        "dtype": "float32",
        "demonstrations": {"k": 2},
        "teacher": {"completions": "gold", "max_new_tokens": 6},
        "training": {"rows": 6, "max_steps": 4, "batch_size": 3, "learning_rate": 0.01},
        "evaluation": {
            **{"rows": 5, "rows_out_of_domain": 3, "batch_size": 2},
            **{"validation_rows": 4, "at_steps": 2},
        },
        "grid": {"method": ["distillation", "in_context"]},
    }


def test_two_processes_make_the_written_cells_that_one_makes(
    written: dict[str, Any], tmp_path: Path
) -> None:
    study.run(grid.plan(written), tmp_path / "alone", display=Display(quiet=True))
    recipe = tmp_path / "written.yaml"
    recipe.write_text(yaml.safe_dump(written), encoding="utf-8")
    arguments = ("run", str(recipe), "--output", str(tmp_path / "study"), "--quiet")
    made = launch(tmp_path, *arguments)
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("2 cells done") == 1, made.stdout
    assert (tmp_path / "study/report.html").exists()
    assert_same_cells(tmp_path / "study", tmp_path / "alone", written)


def test_two_processes_end_a_training_where_one_ends_it(
    written: dict[str, Any], tmp_path: Path
) -> None:
    """They share the held-out rows, each one of the two."""
    ends = {"rows": 25, "max_steps": 24, "until": "plateau"}
    asked = written | {"grid": {"method": ["distillation"]}}
    asked["training"] = written["training"] | ends
    asked["evaluation"] = {"rows": 5, "rows_out_of_domain": 3, "batch_size": 2}
    study.run(grid.plan(asked), tmp_path / "alone", display=Display(quiet=True))
    recipe = tmp_path / "ends.yaml"
    recipe.write_text(yaml.safe_dump(asked), encoding="utf-8")
    arguments = ("run", str(recipe), "--output", str(tmp_path / "study"), "--quiet")
    made = launch(tmp_path, *arguments)
    assert made.returncode == 0, made.stderr
    assert_same_cells(tmp_path / "study", tmp_path / "alone", asked)
    (planned,) = grid.plan(asked).cells
    got, alone = (
        Results.read(tmp_path / name / "cells" / planned.name / RESULTS).training
        for name in ("study", "alone")
    )
    assert got is not None
    assert alone is not None
    assert (got.steps, got.ended, got.held_out_rows) == (alone.steps, alone.ended, 2)
    assert [one.step for one in got.held_out] == [one.step for one in alone.held_out]
    assert [one.loss for one in got.held_out] == pytest.approx(
        [one.loss for one in alone.held_out], abs=1e-3
    )


def test_fsdp_makes_the_written_cells_of_one_process(
    written: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "written.yaml"
    recipe.write_text(yaml.safe_dump(written), encoding="utf-8")
    arguments = ("run", str(recipe), "--output", str(tmp_path / "study"), "--quiet")
    arguments += ("--set", "grid.method=[distillation]")
    refused = launch(tmp_path, *arguments, before=WITH_FSDP)
    assert refused.returncode != 0
    assert refused.stderr.count("got: evaluation.at_steps: 2") == 1, refused.stderr

    made = launch(tmp_path, *arguments, "--set", "evaluation.at_steps=null", before=WITH_FSDP)
    assert made.returncode == 0, made.stderr
    written = written | {"grid": {"method": ["distillation"]}}
    written["evaluation"] = written["evaluation"] | {"at_steps": None}
    study.run(grid.plan(written), tmp_path / "alone", display=Display(quiet=True))
    assert_same_cells(tmp_path / "study", tmp_path / "alone", written)


@pytest.fixture(scope="module")
def named(
    model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A study whose answers are labels: each kind of target and of trained weights, and rows that two processes share unevenly."""
    folder = tmp_path_factory.mktemp("named")

    def rows(name: str, number: int) -> str:
        path = folder / name
        made = ({"text": f"{name} {n * 37 % 101}", "label": "yn"[n % 2]} for n in range(number))
        path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        return str(path)

    return {
        "model": str(model_folders["llama"]),
        "task": {
            "name": "classification",
            "pattern": "{text}\nGood?",
            "verbalizer": {"y": ["Yes", "Yeah"], "n": "No"},
            "train": rows("train.jsonl", 40),
            "in_domain": {"here": rows("here.jsonl", 9)},
        },
        "dtype": "float32",
        "demonstrations": {"k": 2},
        "training": {"rows": 7, "max_steps": 4, "batch_size": 3, "learning_rate": 0.01},
        "evaluation": {"batch_size": 2},
        "grid": [
            {"method": ["in_context"], "teacher": [{"contexts": 2, "calibration": "contextual"}]},
            {
                "method": ["distillation"],
                "objective": [{"over": "labels_and_mass"}, {"over": "vocabulary"}],
            },
            {"method": ["vanilla_fine_tuning"], "tuning": [{"name": "lora"}, {"name": "full"}]},
        ],
    }


@pytest.mark.parametrize("before", ["", WITH_FSDP], ids=["ddp", "fsdp"])
def test_two_processes_make_the_labelled_cells_that_one_makes(
    named: dict[str, Any], tmp_path: Path, before: str
) -> None:
    plan = grid.plan(named)
    study.run(plan, tmp_path / "alone", display=Display(quiet=True))
    recipe = tmp_path / "named.yaml"
    recipe.write_text(yaml.safe_dump(named, sort_keys=False), encoding="utf-8")
    cells, arguments = plan.cells, ()
    if before:  # what does not train has no layers to share out
        cells, arguments = cells[1:], ("--set", "grid=" + json.dumps(named["grid"][1:]))
    made = launch(
        tmp_path,
        "run",
        str(recipe),
        "--output",
        str(tmp_path / "study"),
        "--quiet",
        *arguments,
        before=before,
    )
    assert made.returncode == 0, made.stderr
    for cell in cells:
        ours, theirs = (tmp_path / name / "cells" / cell.name for name in ("study", "alone"))
        mine, other = Results.read(ours / RESULTS), Results.read(theirs / RESULTS)
        assert [(p.name, p.stat().st_size) for p in sorted(ours.rglob("*.safetensors"))] == [
            (p.name, p.stat().st_size) for p in sorted(theirs.rglob("*.safetensors"))
        ]
        assert not list(ours.glob("scratch"))
        for file in theirs.rglob("*.safetensors"):
            got = load_file(ours / file.relative_to(theirs))
            for name, weight in load_file(file).items():
                torch.testing.assert_close(got[name], weight, atol=5e-4, rtol=1e-4)
        told = [read_lines(Prediction, folder / PREDICTIONS) for folder in (ours, theirs)]
        for got_line, line in zip(*told, strict=True):
            assert (got_line.input, got_line.expected) == (line.input, line.expected)
            assert got_line.probabilities == pytest.approx(line.probabilities, abs=1e-3)
        for name, cost in other.phases.items():
            if name != "load":
                assert mine.phases[name].tokens >= cost.tokens  # each process reads the context
                assert mine.phases[name].tokens < 1.5 * cost.tokens + 200


def same_answers(got: list[Prediction], expected: list[Prediction]) -> None:
    """Checks that all answers are the same, and their KL nearly so."""
    without = {"kl": None}
    assert [one.model_copy(update=without) for one in got] == [
        one.model_copy(update=without) for one in expected
    ]
    for mine, other in zip(got, expected, strict=True):
        assert mine.kl == pytest.approx(other.kl, abs=1e-3)


def assert_same_cells(got: Path, expected: Path, settings: dict[str, Any]) -> None:
    for planned in grid.plan(settings).cells:
        ours, theirs = (
            Results.read(root / "cells" / planned.name / RESULTS) for root in (got, expected)
        )
        for mine, other in zip(ours.methods[0].scores, theirs.methods[0].scores, strict=True):
            assert (mine.name, mine.accuracy) == (other.name, other.accuracy)
            assert mine.cross_entropy == pytest.approx(other.cross_entropy, abs=1e-3)
            assert (mine.fidelity is None) == (planned.recipe.method == "in_context")
            if mine.fidelity and other.fidelity:
                kl = other.fidelity.kl_to_teacher
                assert mine.fidelity.kl_to_teacher == pytest.approx(kl, abs=1e-3)
        answers = (
            read_lines(Prediction, root / "cells" / planned.name / PREDICTIONS)
            for root in (got, expected)
        )
        same_answers(next(answers), next(answers))
        if ours.training and theirs.training:
            kept = ([one.kept for one in of.checkpoints] for of in (ours.training, theirs.training))
            assert next(kept) == next(kept)
            assert [loss for _, loss in ours.training.loss] == pytest.approx(
                [loss for _, loss in theirs.training.loss], abs=1e-3
            )
            assert ours.training.trainable_parameters == theirs.training.trainable_parameters
        assert ours.shipped_bytes == theirs.shipped_bytes
        # Each process reads the context, and reports its own measurement beside the other's.
        assert ours.phases["evaluate"].tokens >= theirs.phases["evaluate"].tokens


def test_a_batch_has_a_row_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 8)
    with pytest.raises(ConfigError, match="4 rows for 8 processes; allowed: at least 8"):
        check(sections.Training(batch_size=4), ForwardKL(), None)
