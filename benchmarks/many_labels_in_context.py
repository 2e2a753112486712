"""Times a whole cell with 77 labels in context, as a user would run it.

    python benchmarks/many_labels_in_context.py [--output FILE]

The task is that of `many_labels.py`: messages to a bank, 77 labels of two to six words. The teacher
reads one demonstration of each label, under two contexts. It is asked for 100 rows that are judged
and 300 rows that a student then learns from in 20 steps. The messages are written from a pattern,
so the scores say nothing; the times do. Nothing is cached before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from many_labels import MODEL, NAMES

LEARNT = [
    "Hello, I hope you can help me with this: {}",
    "I wrote to you last week and nobody has answered yet. It is about this: {}",
    "Good morning! My question is short: {}",
    "My husband says that I should ask you about this one: {}",
    "{} - that is what I am writing about, and it is urgent",
    "Could somebody call me back? The matter is: {}",
]
JUDGED = ["I have looked everywhere on your site and found nothing about this: {}", "Dear bank, {}"]


def recipe(folder: Path) -> Path:
    """Writes the rows and the recipe."""
    for name, patterns in (("train", LEARNT), ("eval", JUDGED)):
        rows = [
            {"text": pattern.format(intent), "label": intent}
            for pattern in patterns
            for intent in NAMES
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    settings = {
        "model": MODEL,
        "task": {
            "name": "classification",
            "folder": str(folder),
            "train": "train.jsonl",
            "in_domain": {"messages": "eval.jsonl"},
            "pattern": "Message to the bank: {text}\nWhat the customer wants:",
            "verbalizer": {name: [name] for name in NAMES},
        },
        "demonstrations": {"k": len(NAMES)},
        "teacher": {"contexts": 2},
        "training": {"rows": 300, "max_steps": 20},
        "evaluation": {"rows": 100},
        "grid": {"method": ["in_context", "distillation"]},
    }
    path = folder / "intents.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    from instil.system import environment

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start = time.perf_counter()
        subprocess.run(
            [
                str(Path(sys.executable).with_name("instil")),
                "run",
                str(recipe(folder)),
                "--output",
                str(folder / "study"),
            ],
            env={**os.environ, "INSTIL_CACHE": str(folder / "cache")},
            check=True,
        )
        wall = time.perf_counter() - start
        cells = [json.loads(path.read_text()) for path in folder.glob("study/cells/*/results.json")]
    record = {
        "command": "python benchmarks/many_labels_in_context.py",
        "load_average_before": load,
        "wall_seconds": wall,
        "cells": {
            cell["methods"][0]["method"]: {
                "phases": cell["phases"],
                "prompt_tokens": cell["methods"][0]["prompt_tokens_mean"],
                "accuracy": cell["methods"][0]["scores"][0]["accuracy"]["value"],
            }
            for cell in cells
        },
        "environment": environment.describe(),
    }
    for method, cell in record["cells"].items():
        seconds = {name: f"{of['wall_seconds']:.0f} s" for name, of in cell["phases"].items()}
        print(method, f"{cell['prompt_tokens']:.0f} tokens a prompt", seconds)
    print(f"{wall:.0f} s")
    if arguments.output:
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
