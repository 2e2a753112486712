"""Compares training settings on the same targets: which defaults give the best student for the time?

    python benchmarks/training_defaults.py --data FOLDER [--seeds 0] [--output FILE]

Teacher, targets and held-out rows of a task are made once; every setting then trains a fresh adapter on them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from function_vectors import MODEL, TASKS, split
from instil.evaluation import answers, drift, fidelity
from instil.models.generate import Decoding
from instil.pipeline import experiment
from instil.pipeline.given import Given
from instil.prompts.context import Context
from instil.recipe.recipe import Recipe
from instil.system import environment
from instil.system.costs import Recorder
from instil.system.progress import Display
from instil.tasks.rows import read_rows

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
    """Trains a student a setting and judges it."""
    nothing = lambda rows, tokens: None  # noqa: E731
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        paths = split(data / "function_vectors" / f"{task}.jsonl", seed, Path(name))
        base = {"model": MODEL, "prompt": {"format": "plain"}, "seed": seed}
        context = Context.read(Recipe.parse({**base, "context": {"demos": paths["demos"]}}).context)
        inputs = read_rows(paths["inputs"], need_output=False)
        held_out = read_rows(paths["eval"], need_output=True)
        in_context = None
        for setting in names:
            recipe = Recipe.parse({**base, **SETTINGS[setting]})
            given = Given(context, inputs, held_out)
            job = experiment.Job.prepare(recipe, given, Recorder(), Display(quiet=True))
            decoding = Decoding(max_new_tokens=job.max_new_tokens)
            if in_context is None:
                scored, _ = answers.answer(
                    job.judged, "in_context", job.held_out, decoding, advance=nothing
                )
                assert scored.accuracy is not None
                in_context = scored.accuracy.value
            folder = Path(name) / str(len(outcomes))
            folder.mkdir()
            completions = job.completions(folder)
            start = time.perf_counter()
            job.train(folder, completions)
            seconds = time.perf_counter() - start
            scored, _ = answers.answer(
                job.judged, "distilled", job.held_out, decoding, advance=nothing
            )
            pairs = job.held_out.pairs(list(enumerate(completions.held_out)), job.windows)
            close = fidelity.fidelity(job.judged, pairs, gold=True, batch_size=64, advance=nothing)
            moved = drift.drift(job.judged, advance=nothing)
            assert scored.accuracy is not None
            outcome = {
                "task": task,
                "seed": seed,
                "setting": setting,
                "in_context": in_context,
                "distilled": scored.accuracy.value,
                "kl_share": close.kl_to_teacher.distilled / close.kl_to_teacher.zero_shot,
                "drift": moved.kl_to_base,
                "train_seconds": seconds,
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
