"""What do kept texts cost, and what do they keep? Variants of `keep` on small tasks.

    python benchmarks/keep.py --data FOLDER [--variants NAME ...] [--tasks TASK ...]
        [--seeds 0 1 2] [--output FILE]

FOLDER holds `function_vectors/*.jsonl` (Todd et al. 2024). A run is that of `function_vectors.py`:
a process of its own, with 8 demonstrations, up to 200 inputs and 100 held-out rows. `demo` is the
demo's task. The variants take turns, and texts that the model has written are there already.
Drift is measured on 1,000 tokens of each kind of text. Each run adds a line to the output when it
ends, and a run that has a line is not repeated.

Settings are chosen on `DEVELOPMENT`; `REPORTED` shows what they give.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from function_vectors import MODEL, TASKS, accuracies, distances, split
from instil.results.schema import RESULTS, Results
from instil.system import environment

DEMO = "demo"
DEVELOPMENT = ("antonym", "english-french", "alphabetically_first_3")
REPORTED = (*TASKS, DEMO)
VARIANTS: dict[str, list[str]] = {
    "nothing": ["--keep", "none"],
    "default": [],
    "weight 1": ["--set", "keep.weight=1"],
    "weight 2": ["--set", "keep.weight=2"],
    "weight 8": ["--set", "keep.weight=8"],
    "2 texts": ["--set", "keep.share=0.11"],
    "8 texts": ["--set", "keep.share=0.33"],
    "16 tokens": ["--set", "keep.tokens=16"],
    "192 texts": ["--set", "keep.rows=192"],
    "192 texts of 48 tokens": ["--set", "keep.rows=192", "--set", "keep.tokens=48"],
    "rank 4": ["--keep", "none", "--lora-r", "4"],
    "half the learning rate": ["--keep", "none", "--learning-rate", "5e-4"],
    "weight decay 0.1": ["--keep", "none", "--set", "training.weight_decay=0.1"],
}


def inputs(task: str, seed: int, data: Path, folder: Path) -> list[str]:
    """The options that name a task's files."""
    if task == DEMO:
        root = files("instil") / "demo"
        named = {"demos": "demonstrations", "eval": "eval", "inputs": "inputs"}
        paths = {kind: Path(str(root / f"{name}.jsonl")) for kind, name in named.items()}
        more = ["--batch-size", "8"]
    else:
        paths = split(data / "function_vectors" / f"{task}.jsonl", seed, folder)
        more = []
    return [*(part for kind, path in paths.items() for part in (f"--{kind}", str(path))), *more]


def measure(task: str, seed: int, variant: str, data: Path) -> dict[str, Any]:
    """One run of the command: its scores, drift by kind of text, and wall time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [
            str(Path(sys.executable).with_name("instil")), "distill", "--model", MODEL, "--format", "plain",
            "--output", str(folder / "run"), "--seed", str(seed), "--quiet",
            *inputs(task, seed, data, folder), "--set", "evaluation.drift_tokens=1000",
            *VARIANTS[variant],
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        wall = time.perf_counter() - start
        results = Results.read(folder / "run" / RESULTS)
    drift = results.methods[0].drift
    assert drift is not None
    return {
        "task": task,
        "seed": seed,
        "variant": variant,
        **accuracies(results),
        "recovery": results.recovery,
        **distances(results),
        "same_top": drift.same_top,
        "kinds": {name: kind.model_dump() for name, kind in drift.kinds.items()},
        "wall_seconds": wall,
        "phases": {name: phase.wall_seconds for name, phase in results.phases.items()},
    }


def table(runs: list[dict[str, Any]], variants: list[str]) -> str:
    """Markdown: means over the runs of each variant."""
    lines = [
        "| variant | runs | student (in-context) | KL (% of zero-shot) | drift (worst) | "
        "same token | wall |",
        "| --- |" + " --- |" * 6,
    ]
    for variant in variants:
        of = [run for run in runs if run["variant"] == variant]
        if not of:
            continue

        def mean(name: str, of: list[dict[str, Any]] = of) -> float:
            return statistics.mean(run[name] for run in of)

        lines.append(
            f"| {variant} | {len(of)} | {mean('distillation'):.3f} ({mean('in_context'):.3f}) | "
            f"{mean('kl_share'):.1%} | {mean('drift'):.3f} ({max(r['drift'] for r in of):.3f}) | "
            f"{mean('same_top'):.1%} | {mean('wall_seconds'):.0f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", default=REPORTED)
    parser.add_argument("--variants", nargs="*", default=["nothing", "default"], choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="JSON Lines file for the results")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    if arguments.output and arguments.output.exists():
        lines = arguments.output.read_text(encoding="utf-8").splitlines()
        runs = [run for line in lines if "variant" in (run := json.loads(line))]
    elif arguments.output:
        described = json.dumps({"environment": environment.describe()})
        arguments.output.write_text(described + "\n", encoding="utf-8")
    known = {(run["task"], run["seed"], run["variant"]) for run in runs}
    for task in arguments.tasks:
        for seed in arguments.seeds:
            for variant in arguments.variants:
                if (task, seed, variant) in known:
                    continue
                run = measure(task, seed, variant, arguments.data)
                runs.append(run)
                shown = (
                    "distillation",
                    "in_context",
                    "kl_share",
                    "drift",
                    "same_top",
                    "wall_seconds",
                )
                told = ", ".join(f"{name} {run[name]:.3f}" for name in shown)
                print(f"{task} {seed} {variant}: {told}", flush=True)
                if arguments.output:
                    with arguments.output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(run) + "\n")
    print(table([run for run in runs if run["task"] in arguments.tasks], arguments.variants))


if __name__ == "__main__":
    main()
