"""Runs variants of `instil distill` on small tasks, each in a process of its own.

Used by `keep.py`, `training_length.py` and `made_inputs.py`. The tasks are those of
`function_vectors.py`, with 8 demonstrations, up to 200 inputs and 100 held-out rows, tasks of
`instruction_induction/*.train.jsonl` (Honovich et al. 2022) split in the same way, and the demo's.
The variants take turns, and texts that the model has written are there already. Each run adds a
line to the output when it ends, and a run that has a line is not repeated.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from function_vectors import MODEL, TASKS, accuracies, distances, split
from instil.results.schema import RESULTS, Results
from instil.system import environment

DEMO = "demo"
DEVELOPMENT = (
    *("antonym", "english-french", "alphabetically_first_3", "synonym"),
    *("letters_list", "num_to_verbal"),
)
REPORTED = (*TASKS, DEMO)


@dataclass(frozen=True)
class Variant:
    """Options of `instil distill`, and how many of the inputs it is given; None: all.

    `INPUTS` in an option stands for the file of the inputs.
    """

    options: Sequence[str] = ()
    given: int | None = None


def inputs(task: str, seed: int, data: Path, folder: Path, given: int | None) -> list[str]:
    """The options that name a task's files."""
    if task == DEMO:
        root = files("instil") / "demo"
        named = {"demos": "demonstrations", "eval": "eval", "inputs": "inputs"}
        paths = {kind: Path(str(root / f"{name}.jsonl")) for kind, name in named.items()}
        more = ["--batch-size", "8"]
    else:
        found = data / "function_vectors" / f"{task}.jsonl"
        if not found.exists():
            found = data / "instruction_induction" / f"{task}.train.jsonl"
        paths = split(found, seed, folder)
        more = []
    if given is not None:
        lines = paths["inputs"].read_text(encoding="utf-8").splitlines(keepends=True)
        paths["inputs"] = folder / "given.jsonl"
        paths["inputs"].write_text("".join(lines[:given]), encoding="utf-8")
    return [*(part for kind, path in paths.items() for part in (f"--{kind}", str(path))), *more]


def measure(task: str, seed: int, variant: Variant, data: Path) -> dict[str, Any]:
    """One run of the command: its scores, drift by kind of text, and wall time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        named = inputs(task, seed, data, folder, variant.given)
        given = named[named.index("--inputs") + 1]
        options = [option.replace("INPUTS", given) for option in variant.options]
        command = [
            str(Path(sys.executable).with_name("instil")), "distill", "--model", MODEL, "--format", "plain",
            "--output", str(folder / "run"), "--seed", str(seed), "--quiet",
            *named, *options,
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        wall = time.perf_counter() - start
        results = Results.read(folder / "run" / RESULTS)
    drift, training = results.methods[0].drift, results.training
    general = results.methods[0].retention
    assert drift is not None
    assert training is not None
    return {
        "task": task,
        "seed": seed,
        **accuracies(results),
        "recovery": results.recovery,
        **distances(results),
        "same_top": drift.same_top,
        "general": general and general.kl_to_base,
        "general_length": general and general.length,
        "kinds": {name: kind.model_dump() for name, kind in drift.kinds.items()},
        "rows": training.rows,
        "made": training.made_inputs and training.made_inputs.model_dump(),
        "steps": training.steps,
        "ended": training.ended,
        "held_out": [(seen.step, round(seen.loss, 5)) for seen in training.held_out],
        "wall_seconds": wall,
        "phases": {name: phase.wall_seconds for name, phase in results.phases.items()},
    }


def table(runs: list[dict[str, Any]], variants: Sequence[str]) -> str:
    """Markdown: means over the runs of each variant, then its runs one by one."""
    lines = [
        "| variant | runs | student (in-context) | recovery | KL (% of zero-shot) | drift (worst) | "
        "same token | general prompts | steps | training | wall |",
        "| --- |" + " --- |" * 10,
    ]
    for variant in variants:
        of = [run for run in runs if run["variant"] == variant]
        if not of:
            continue

        def mean(name: str, of: list[dict[str, Any]] = of) -> float:
            return statistics.mean(run[name] for run in of if run.get(name) is not None)

        asked = [run["general"] for run in of if run.get("general") is not None]
        general = f"{statistics.mean(asked):.3f}" if asked else ""
        train = statistics.mean(run["phases"]["train"] for run in of)
        steps = f"{mean('steps'):.0f}" if any("steps" in run for run in of) else "60"
        lines.append(
            f"| {variant} | {len(of)} | {mean('distillation'):.3f} ({mean('in_context'):.3f}) | "
            f"{mean('recovery'):.2f} | {mean('kl_share'):.1%} | "
            f"{mean('drift'):.3f} ({max(r['drift'] for r in of):.3f}) | "
            f"{mean('same_top'):.1%} | {general} | {steps} | {train:.0f} s | {mean('wall_seconds'):.0f} s |"
        )
    return "\n".join(lines)


def main(
    description: str | None, variants: Mapping[str, Variant], chosen: Sequence[str] | None = None
) -> None:
    """Runs what the command line asks for, and prints a table.

    Args:
        description: Text of the help.
        variants: All variants.
        chosen: Those that run if none is named; None: all.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", default=REPORTED)
    parser.add_argument("--variants", nargs="*", default=chosen or [*variants], choices=variants)
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
            for name in arguments.variants:
                if (task, seed, name) in known:
                    continue
                run = {"variant": name, **measure(task, seed, variants[name], arguments.data)}
                runs.append(run)
                shown = ("distillation", "in_context", "kl_share", "drift", "wall_seconds")
                told = ", ".join(f"{key} {run[key]:.3f}" for key in shown)
                print(f"{task} {seed} {name}: {told}, {run['steps']} steps", flush=True)
                if arguments.output:
                    with arguments.output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(run) + "\n")
    print(table([run for run in runs if run["task"] in arguments.tasks], arguments.variants))
