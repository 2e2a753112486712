"""How do time and memory grow with the number of conversations, until all is ready for the teacher?

    python benchmarks/log_size.py [--sizes 1000 4000] [--output FILE]

Conversations of four turns and some 700 tokens are written, then read, cleaned, split and rendered as
token ids for teacher and student. Each size runs in a process of its own, which copies itself. The
memory is that of all of them together: what several share counts once.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from instil.system import environment

MODEL = "bundled:smollm2-135m-instruct"
TURNS, WORDS = 4, 55


def write(path: Path, count: int) -> None:
    """Writes conversations of random words, with one system prompt."""
    rng = random.Random(0)
    words = [
        f"{a}{b}"
        for a in ("re", "con", "in", "ad", "pro")
        for b in ("port", "form", "duct", "ject")
    ]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            messages = [{"role": "system", "content": "Answer shortly and kindly. " * 20}]
            for turn in range(2 * TURNS):
                text = " ".join(rng.choices(words, k=WORDS))
                messages.append({"role": "assistant" if turn % 2 else "user", "content": text})
            file.write(json.dumps({"messages": messages}) + "\n")


def prepare(file: Path) -> dict[str, Any]:
    """Reads and renders a file; returns seconds and memory."""
    from instil.models.load import outline
    from instil.models.roles import Models
    from instil.pipeline.form import form_of
    from instil.pipeline.rendering import Rendering
    from instil.pipeline.rows import CellRows
    from instil.recipe.recipe import Recipe

    recipe = Recipe.parse(
        {
            "model": MODEL,
            "task": {"name": "files", "inputs": str(file), "context_from_logs": True},
            "teacher": {"completions": "gold"},
        }
    )
    model: Any = outline(MODEL)
    start = time.perf_counter()
    rows = CellRows.of(recipe)
    read = time.perf_counter()
    render = Rendering(recipe, rows, Models(model, model), form_of(recipe, model))
    made = render.rows("input", rows.drawn.training)
    done = time.perf_counter()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "rows": len(made.rows),
        "read_seconds": read - start,
        "render_seconds": done - read,
        "processor_seconds": sum(one.ru_utime + one.ru_stime for one in used),
        "peak_mb_of_main_process": used[0].ru_maxrss / 1024,
    }


def measured(file: Path) -> dict[str, Any]:
    """What `prepare` measures in a process of its own, and the most memory of it and its copies."""
    command = [sys.executable, __file__, "--one", str(file)]
    most = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        whole = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.Error):
                all_of_them = [whole, *whole.children()]
                most = max(most, sum(one.memory_full_info().pss for one in all_of_them))
            time.sleep(2)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    return {**json.loads(output.splitlines()[-1]), "peak_mb": most / 2**20}


def main() -> None:
    """Measures each size, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 4000])
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(prepare(arguments.one)))
        return
    found = {}
    print(
        "| conversations | rows | read | rendered | processor time | peak memory |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / "logs.jsonl"
            write(file, size)
            one = found[size] = measured(file)
        print(
            f"| {size:,} | {one['rows']:,} | {one['read_seconds']:.0f} s | "
            f"{one['render_seconds']:.0f} s | {one['processor_seconds']:.0f} s | "
            f"{one['peak_mb']:,.0f} MB |",
            flush=True,
        )
    if arguments.output:
        whole = {"environment": environment.describe(), "measured": found}
        arguments.output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
