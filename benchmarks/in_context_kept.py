"""Does a student still learn in context? Its accuracy on tasks that it was not taught.

    python benchmarks/in_context_kept.py --data FOLDER [--tasks TASK ...] [--seeds 0] [--output FILE]

FOLDER holds the data of `small_tasks.py`. A student is trained on each task, without kept texts and
with them. Then it answers 100 rows of each of the tasks of `DEVELOPMENT`, with 8 demonstrations of
that task before the query. So does its base, which is the same model with the adapter off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import instil
from function_vectors import MODEL, TASKS, split
from instil.metrics.exact import exact
from instil.models.generate import Decoding, generate
from instil.prompts.context import Context, FewShot
from instil.system import environment
from small_tasks import DEVELOPMENT, inputs

VARIANTS = {"nothing": ["--keep", "none"], "default": []}


def answers(student: instil.Student, demos: Path, held_out: Path, *, base: bool) -> float:
    """The share of right answers to held-out rows, with demonstrations before the query."""
    context = Context.of(FewShot(instil.read_rows(demos, need_output=True)))
    rows = instil.read_rows(held_out, need_output=True)
    prompts = student.form.prompts([row.input for row in rows], [context] * len(rows))
    network: Any = student.model.network
    with network.disable_adapter() if base else nullcontext():
        written = generate(
            student.model,
            prompts,
            student.form.ending,
            Decoding(max_new_tokens=24),
            advance=lambda rows, tokens: None,
        )
    right = exact
    return statistics.mean(
        right(student.form.decode(answer.ids), row.output or "")
        for answer, row in zip(written, rows, strict=True)
    )


def measure(task: str, seed: int, options: list[str], data: Path) -> dict[str, dict[str, float]]:
    """Trains on a task; returns the accuracies of the base and of the student on each other task."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [
            str(Path(sys.executable).with_name("instil")), "distill", "--model", MODEL, "--format", "plain",
            "--output", str(folder / "run"), "--seed", str(seed), "--quiet", "--max-steps", "60",
            "--set", "evaluation.drift_tokens=1", *inputs(task, seed, data, folder, None), *options,
        ]  # fmt: skip
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        run = instil.load(folder / "run")
        assert isinstance(run, instil.Run)
        found = {}
        for other in DEVELOPMENT:
            path = data / "function_vectors" / f"{other}.jsonl"
            if not path.exists():
                path = data / "instruction_induction" / f"{other}.train.jsonl"
            named = split(path, seed, folder)
            found[other] = {
                who: answers(run.student, named["demos"], named["eval"], base=who == "base")
                for who in ("base", "student")
            }
    return found


def main() -> None:
    """Runs all tasks, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--output", type=Path, help="JSON Lines file for the results")
    arguments = parser.parse_args()
    lines: list[dict[str, Any]] = [{"environment": environment.describe()}]
    print("| taught | kept | base | student | worst task |\n| --- | --- | --- | --- | --- |")
    for task in arguments.tasks:
        for seed in arguments.seeds:
            for variant, options in VARIANTS.items():
                found = measure(task, seed, options, arguments.data)
                lines.append({"task": task, "seed": seed, "variant": variant, "others": found})
                base, student = (
                    statistics.mean(one[who] for one in found.values())
                    for who in ("base", "student")
                )
                worst = min(found, key=lambda name: found[name]["student"] - found[name]["base"])
                told = f"{worst}: {found[worst]['base']:.2f} to {found[worst]['student']:.2f}"
                print(f"| {task} | {variant} | {base:.3f} | {student:.3f} | {told} |", flush=True)
                if arguments.output:
                    text = "".join(json.dumps(line) + "\n" for line in lines)
                    arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
