"""Runs the demo from a cold cache, as a new user would, and keeps its results.

python benchmarks/demo.py [--output benchmarks/results/demo.json] [--run runs/demo]
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
from typing import Any


def results(folder: Path) -> dict[str, Any]:
    """What the run found; its recipe names files of the package, whose place says nothing."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    task = found["recipe"]["task"]
    places = {name: Path(task[name]).name for name in ("inputs", "eval", "demos") if task[name]}
    found["recipe"]["task"] = {**task, **places, "folder": None}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        subprocess.run(
            [
                str(Path(sys.executable).with_name("instil")),
                "demo",
                "--overwrite",
                "--output",
                str(arguments.run),
            ],
            env={**os.environ, "INSTIL_CACHE": cache},
            check=True,
        )
        wall = time.perf_counter() - start
    print(f"{wall:.0f} s")
    if arguments.output:
        record = {
            "command": "python benchmarks/demo.py",
            "wall_seconds": wall,
            "results": results(arguments.run),
            "environment": json.loads(
                (arguments.run / "environment.json").read_text(encoding="utf-8")
            ),
        }
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
