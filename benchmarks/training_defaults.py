"""Compares training settings on the same rows: which defaults give the best student for the time?

    python benchmarks/training_defaults.py --data FOLDER [--seeds 0] [--output FILE]

Every setting trains a fresh adapter on the same rows. The teacher's completions and targets are
computed once where they are equal. `train_seconds` are the seconds of computing the targets and of
training, also where the targets were read.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import instil
from function_vectors import MODEL, TASKS, accuracies, distances, split
from instil import FewShot, read_rows
from instil.system import environment

SETTINGS: dict[str, dict[str, Any]] = {
    "100 steps, lr 1e-3": {"training": {"max_steps": 100}},
    "60 steps, lr 1e-3": {"training": {"max_steps": 60}},
    "60 steps, lr 2e-3": {"training": {"max_steps": 60, "learning_rate": 2e-3}},
    "40 steps, lr 2e-3": {"training": {"max_steps": 40, "learning_rate": 2e-3}},
    "30 steps, lr 1e-3": {"training": {"max_steps": 30}},
    "60 steps, lr 5e-4": {"training": {"max_steps": 60, "learning_rate": 5e-4}},
    "60 steps, lr 1e-3, r 32": {
        "training": {"max_steps": 60},
        "tuning": {"name": "lora", "r": 32, "alpha": 64},
    },
    "60 steps, lr 1e-3, dropout 0.1": {
        "training": {"max_steps": 60},
        "tuning": {"name": "lora", "dropout": 0.1},
    },
    "60 steps, lr 2e-3, batch 8": {
        "training": {"max_steps": 60, "learning_rate": 2e-3, "batch_size": 8}
    },
    "60 steps, lr 1e-3, 4 samples": {
        "training": {"max_steps": 60},
        "teacher": {"samples": 4, "sampling_temperature": 1.0},
    },
    "60 steps, lr 2e-3, 4 samples": {
        "training": {"max_steps": 60, "learning_rate": 2e-3},
        "teacher": {"samples": 4, "sampling_temperature": 1.0},
    },
    "60 steps, lr 2e-3, temperature 2": {
        "training": {"max_steps": 60, "learning_rate": 2e-3},
        "objective": {"name": "forward_kl", "temperature": 2.0},
    },
    "60 steps, lr 2e-3, cross-entropy": {
        "training": {"max_steps": 60, "learning_rate": 2e-3},
        "objective": {"name": "cross_entropy"},
    },
}


def compare(task: str, seed: int, data: Path, names: list[str]) -> list[dict[str, Any]]:
    """Trains a student per setting and judges it."""
    outcomes: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = split(data / "function_vectors" / f"{task}.jsonl", seed, folder)
        for setting in names:
            settings = dict(SETTINGS[setting])
            teacher = {"store": folder / "targets", **settings.pop("teacher", {})}
            run = instil.distill(
                MODEL,
                context=FewShot(read_rows(paths["demos"], need_output=True)),
                inputs=read_rows(paths["inputs"], need_output=False),
                eval=read_rows(paths["eval"], need_output=True),
                output=folder / f"run-{len(outcomes)}",
                quiet=True,
                prompt={"format": "plain"},
                seed=seed,
                teacher=teacher,
                **settings,
            )
            results = run.results
            accuracy, distance = accuracies(results), distances(results)
            outcome = {
                "task": task,
                "seed": seed,
                "setting": setting,
                "in_context": accuracy["in_context"],
                "distillation": accuracy["distillation"],
                "kl_share": distance["kl_share"],
                "drift": distance["drift"],
                "train_seconds": sum(
                    cost.wall_seconds
                    for phase, cost in results.phases.items()
                    if phase in ("teach", "train")
                ),
            }
            print(json.dumps(outcome), flush=True)
            outcomes.append(outcome)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=TASKS, choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    runs = [
        outcome
        for task in arguments.only
        for seed in arguments.seeds
        for outcome in compare(task, seed, arguments.data, arguments.settings)
    ]
    if arguments.output:
        record = {"runs": runs, "environment": environment.describe()}
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
