"""Measures the quality and cost of `instil distill` on four one-word tasks, three seeds each.

    python benchmarks/function_vectors.py --data FOLDER
        [--only TASK] [--seeds 0 1 2] [-- OPTIONS OF instil distill]

FOLDER holds `function_vectors/*.jsonl` (Todd et al. 2024, MIT) with the fields `input` and
`output`. Each run gets 8 demonstrations, 100 held-out rows and up to 200 unlabelled inputs, all
different; tasks of about 200 rows leave fewer than 100 inputs. Every run is a process of its own,
so that its wall time and peak memory are those of the command.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from instil.results.schema import RESULTS, Results

TASKS = ("singular-plural", "country-capital", "product-company", "capitalize")
MODEL = "bundled:smollm2-135m-instruct"
DEMONSTRATIONS, HELD_OUT, INPUTS = 8, 100, 200


def split(path: Path, seed: int, folder: Path) -> dict[str, Path]:
    """Writes demonstrations, evaluation rows and inputs; no input text is in two of them."""
    different: dict[str, dict[str, str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        different.setdefault(" ".join(row["input"].casefold().split()), row)
    rows = list(different.values())
    random.Random(seed).shuffle(rows)
    ends = (0, DEMONSTRATIONS, DEMONSTRATIONS + HELD_OUT, DEMONSTRATIONS + HELD_OUT + INPUTS)
    paths = {}
    for name, start, end in zip(("demos", "eval", "inputs"), ends, ends[1:], strict=False):
        fields = ("input",) if name == "inputs" else ("input", "output")
        paths[name] = folder / f"{name}.jsonl"
        with paths[name].open("w", encoding="utf-8") as file:
            for row in rows[start:end]:
                file.write(json.dumps({field: row[field] for field in fields}) + "\n")
    return paths


def measure(task: str, seed: int, data: Path, options: list[str]) -> dict[str, Any]:
    """One run of the command: its scores, wall time and peak memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = split(data / "function_vectors" / f"{task}.jsonl", seed, folder)
        command = [
            str(Path(sys.executable).with_name("instil")), "distill", "--model", MODEL, "--format", "plain",
            "--output", str(folder / "run"), "--seed", str(seed), "--quiet",
            *(part for kind, path in paths.items() for part in (f"--{kind}", str(path))), *options,
        ]  # fmt: skip
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if status:
            raise SystemExit(f"{task}, seed {seed}: the command failed with status {status}")
        results = Results.read(folder / "run" / RESULTS)
        environment = json.loads((folder / "run" / "environment.json").read_text())
    assert results.training is not None
    return {
        "task": task,
        "seed": seed,
        "inputs": results.training.rows,
        **accuracies(results),
        "recovery": results.recovery,
        **distances(results),
        "wall_seconds": wall,
        "peak_rss_mb": usage.ru_maxrss / 1024,
        "phases": {name: phase.wall_seconds for name, phase in results.phases.items()},
        "dtype": results.dtype,
        "environment": environment,
    }


def accuracies(results: Results) -> dict[str, float]:
    """Of each method on the held-out rows."""
    scored = ((one.method, one.scores[0].accuracy) for one in results.methods)
    return {method: accuracy.value for method, accuracy in scored if accuracy}


def distances(results: Results) -> dict[str, float]:
    """KL to the teacher of the student and of zero-shot, and the student's drift."""
    student, zero_shot = results.methods[0], results.result("zero_shot")
    assert zero_shot is not None
    before, after = zero_shot.scores[0].fidelity, student.scores[0].fidelity
    assert before is not None
    assert after is not None
    assert student.drift is not None
    return {
        "kl_zero_shot": before.kl_to_teacher,
        "kl_distillation": after.kl_to_teacher,
        "kl_share": after.kl_to_teacher / before.kl_to_teacher,
        "drift": student.drift.kl_to_base,
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The bars: means over the runs, and the worst of each."""

    def mean(name: str) -> float:
        return float(sum(run[name] for run in runs) / len(runs))

    gaining = [run for run in runs if run["in_context"] - run["zero_shot"] >= 0.2]
    return {
        "runs": len(runs),
        "zero_shot": mean("zero_shot"),
        "in_context": mean("in_context"),
        "distillation": mean("distillation"),
        "recovery_where_in_context_gains": sum(r["recovery"] for r in gaining)
        / max(len(gaining), 1),
        "runs_where_in_context_gains": len(gaining),
        "kl_share_mean": mean("kl_share"),
        "kl_share_worst": max(run["kl_share"] for run in runs),
        "wall_seconds_mean": mean("wall_seconds"),
        "wall_seconds_worst": max(run["wall_seconds"] for run in runs),
        "peak_rss_mb_worst": max(run["peak_rss_mb"] for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=TASKS, choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("options", nargs="*", help="passed to instil distill, after --")
    arguments = parser.parse_args()
    runs = []
    for task in arguments.only:
        for seed in arguments.seeds:
            run = measure(task, seed, arguments.data, arguments.options)
            runs.append(run)
            print(
                f"{task:16} seed {seed}  n {run['inputs']:3}  zero-shot {run['zero_shot']:.2f}  "
                f"in-context {run['in_context']:.2f}  distilled {run['distillation']:.2f}  "
                f"KL {run['kl_zero_shot']:.3f} -> {run['kl_distillation']:.3f} "
                f"({run['kl_share']:.1%})  drift {run['drift']:.2f}  {run['wall_seconds']:.0f} s  "
                f"{run['peak_rss_mb']:.0f} MiB",
                flush=True,
            )
    environment = runs[-1]["environment"]
    for run in runs:
        del run["environment"]
    summary = summarise(runs)
    print(json.dumps(summary, indent=1))
    if arguments.output:
        command = "python benchmarks/function_vectors.py --data FOLDER " + " ".join(
            ["--", *arguments.options] if arguments.options else []
        )
        record = {
            "command": command.strip(),
            "summary": summary,
            "runs": runs,
            "environment": environment,
        }
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
