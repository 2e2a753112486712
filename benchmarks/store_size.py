"""How fast does a large target store open, and how fast does it give any row?

    python benchmarks/store_size.py [--rows 1000000] [--output FILE]

Rows have two tokens with four outcomes each, so that the numbers are those of rows and shards and
not of bytes. A row is read for the first time from its shard, and again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch

from instil.system import environment
from instil.targets.prediction import Targets
from instil.targets.selection import Selection
from instil.targets.store import StorePlan, TargetStore, build

TOKENS, OUTCOMES, READ = 2, 4, 2000
TARGETS = Targets(
    ids_NK=torch.arange(OUTCOMES).repeat(TOKENS, 1),
    logprobs_NK=torch.tensor([0.4, 0.3, 0.2, 0.05]).log().repeat(TOKENS, 1),
    log_tail_N=torch.tensor([0.05]).log().repeat(TOKENS),
    logsumexp_N=torch.zeros(TOKENS),
    temperature=1.0,
    kept_NK=torch.ones(TOKENS, OUTCOMES, dtype=torch.bool),
)


def score(numbers: Sequence[int]) -> Iterator[tuple[int, list[int], Targets]]:
    """The same targets for all rows."""
    for number in numbers:
        yield number, [1, 2], TARGETS


def milliseconds(store: TargetStore, numbers: Sequence[int]) -> list[float]:
    """The time to read each of some rows."""
    took = []
    for number in numbers:
        start = time.perf_counter()
        store[number]
        took.append((time.perf_counter() - start) * 1000)
    return took


def main() -> None:
    """Builds a store, opens it, reads rows, and prints the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "store"
        plan = StorePlan("f", [TOKENS] * arguments.rows, 1000, Selection(top_k=OUTCOMES))
        start = time.perf_counter()
        build(path, plan, score)
        built = time.perf_counter() - start
        start = time.perf_counter()
        store = TargetStore.open(path, check=False)
        opened = time.perf_counter() - start
        numbers = random.Random(0).sample(range(len(store)), READ)
        first, again = milliseconds(store, numbers), milliseconds(store, numbers)
        start = time.perf_counter()
        TargetStore.open(path)
        checked = time.perf_counter() - start
        found = {
            "rows": arguments.rows,
            "shards": len(store.info.shards),
            "bytes": store.info.stored_bytes,
            "build_seconds": built,
            "open_seconds": opened,
            "open_and_check_seconds": checked,
            "first_row_ms": [statistics.median(first), statistics.mean(first)],
            "row_ms": [statistics.median(again), statistics.mean(again)],
            "rss_mb": psutil.Process().memory_info().rss / 2**20,
        }
    print(json.dumps(found))
    if arguments.output:
        text = json.dumps({"environment": environment.describe(), **found}, indent=1)
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
