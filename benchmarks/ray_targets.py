"""What does it cost to compute the targets of many short rows on a Ray cluster?

    python benchmarks/ray_targets.py [--rows 200000] [--workers 2] [--output FILE]

A tiny random model teaches, so that the time is that of everything around a model. The outputs are
known.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from instil.models.source import resolve
from instil.system import environment

MODEL = "bundled:smollm2-135m-instruct"


def tiny(folder: Path) -> None:
    """Saves a random model with the vocabulary of the bundled one."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(MODEL).path)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe(folder: Path, rows: int) -> Path:
    """Writes rows and a recipe."""

    def write(name: str, made: list[dict[str, str]]) -> str:
        path = folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        return str(path)

    settings = {
        "title": "many rows",
        "model": str(folder / "model"),
        "task": {
            "name": "files",
            "inputs": write(
                "inputs.jsonl", [{"input": f"{n:,}", "output": str(n % 97)} for n in range(rows)]
            ),
            "demos": write("demos.jsonl", [{"input": "-1", "output": "-1"}]),
            "eval": write("eval.jsonl", [{"input": "ten", "output": "10"}]),
        },
        "prompt": {"format": "plain"},
        "teacher": {"completions": "gold", "top_k": 16, "min_probability": 0, "mass_per_draw": 0},
        "keep": {"source": "none"},
        "dtype": "float32",
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def built(command: list[str]) -> dict[str, float]:
    """Runs a command; returns its time, its peak memory, and the most of one of its processes."""
    peaks = {"driver_mb": 0.0, "worker_mb": 0.0}
    start = time.perf_counter()
    with subprocess.Popen(command) as process:
        driver = psutil.Process(process.pid)

        def watch() -> None:
            while process.poll() is None:
                for name, of in (("driver_mb", [driver]), ("worker_mb", _workers(driver))):
                    sizes = [_size(one) for one in of]
                    peaks[name] = max([peaks[name], *sizes])
                time.sleep(0.2)

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        watcher.join()
    if status:
        raise SystemExit(status)
    return {"seconds": time.perf_counter() - start, **peaks}


def _workers(driver: psutil.Process) -> list[psutil.Process]:
    try:
        return [one for one in driver.children(recursive=True) if "Worker" in one.name()]
    except psutil.Error:
        return []


def _size(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0


def main() -> None:
    """Builds a store, and prints what it cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny(folder / "model")
        command = [
            *(str(Path(sys.executable).with_name("instil")), "targets", "build"),
            *(str(recipe(folder, arguments.rows)), "--output", str(folder / "targets")),
            *("--on", "ray", "--workers", str(arguments.workers), "--quiet"),
        ]
        found = built(command)
    result = {
        "environment": environment.describe(),
        "rows": arguments.rows,
        "workers": arguments.workers,
        **found,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
