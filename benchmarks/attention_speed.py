"""Times attention to packed sequences on a processor, fused and in plain products.

    python benchmarks/attention_speed.py [--output benchmarks/results/attention_speed.json]

`instil.models.attention.FUSED` is set after these measurements. One layer of SmolLM2-135M: 9 heads
of queries, 3 of keys, of 64 numbers each. A teacher reads answers after a context of 1,525 tokens.
A student is trained on a row of whole sequences, forward and backward. Milliseconds are the median
of ten calls; the two ways take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from instil.models import attention
from instil.models.attention import BOUNDS, attend
from instil.system import environment

HEADS, SHARED, SIZE, CONTEXT, REPEATS = 9, 3, 64, 1525, 10
TEACHER = ([120], [215], [860], [10] * 12)
STUDENT = ([96], [250], [430], [120, 200, 150], [10] * 12)
FUSED = {"fused": 1, "products": 9}  # bytes of a number from which on attention is fused


def milliseconds(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> float:
    layer = torch.nn.Module()
    layer.num_key_value_groups = HEADS // SHARED  # type: ignore[assignment]
    bounds = torch.tensor([0, *accumulate(lengths)])
    start = time.perf_counter()
    attended, _ = attend(layer, query, key, value, None, **{BOUNDS: bounds})
    if attended.requires_grad:
        attended.sum().backward()  # type: ignore[no-untyped-call]
    return 1000 * (time.perf_counter() - start)


def compared(
    lengths: list[int], prefix: int, dtype: torch.dtype, *, grad: bool
) -> dict[str, float]:
    """Milliseconds of either way."""
    shapes = [(HEADS, 0), (SHARED, prefix), (SHARED, prefix)]
    given = [
        torch.randn(1, heads, before + sum(lengths), SIZE, dtype=dtype).requires_grad_(grad)
        for heads, before in shapes
    ]
    taken: dict[str, list[float]] = {way: [] for way in FUSED}
    for _ in range(REPEATS + 1):
        for way, least in FUSED.items():
            attention.FUSED = least
            taken[way].append(milliseconds(*given, lengths))
    return {way: statistics.median(times[1:]) for way, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        for reader, cases in (("teacher", TEACHER), ("student", STUDENT)):
            for lengths in cases:
                prefix = CONTEXT if reader == "teacher" else 0
                made = compared(lengths, prefix, dtype, grad=reader == "student")
                results.append(
                    {"dtype": str(dtype).removeprefix("torch."), "reader": reader}
                    | {"lengths": lengths}
                    | made
                )
                ratio = made["products"] / made["fused"]
                print(
                    f"{dtype} {reader} {lengths}: fused {made['fused']:.1f} ms, "
                    f"products {ratio:.2f} times"
                )
    if arguments.output:
        record = {
            "command": "python benchmarks/attention_speed.py",
            "context": CONTEXT,
            "milliseconds": results,
            "environment": environment.describe(),
        }
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
