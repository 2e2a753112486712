"""Measures two parts of a training step of the bundled model on short rows, and prints ratios.

    python benchmarks/student_step.py [--output benchmarks/results/student_step.json]

1. The output embedding on a slice of the hidden states (as `logits_to_keep=n` takes it) against a
   contiguous copy of it.
2. Forward and backward on padded rows against the same rows packed into one sequence.

The two of each pair take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch

from instil.models.batch import collate, pack
from instil.models.forward import completion_logits
from instil.models.load import load
from instil.models.tuning import LoRA
from instil.system import environment

ROWS, KEPT = 16, 4
MODEL = "bundled:smollm2-135m-instruct"


def paired(
    first: Callable[[], object], second: Callable[[], object], runs: int
) -> dict[str, float]:
    """Median seconds of each, run in turn, and the median of the ratios first / second."""
    times: list[tuple[float, float]] = []
    for run in range(runs + 1):
        pair = []
        for call in (first, second):
            start = time.perf_counter()
            call()
            pair.append(time.perf_counter() - start)
        if run:  # the first pair warms up
            times.append((pair[0], pair[1]))
    return {
        "first_seconds": statistics.median(a for a, _ in times),
        "second_seconds": statistics.median(b for _, b in times),
        "ratio": statistics.median(a / b for a, b in times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    results: dict[str, object] = {}
    linear = torch.nn.functional.linear
    for dtype in ("bfloat16", "float32"):
        model = load(MODEL, dtype=dtype)
        weight = model.network.get_output_embeddings().weight.detach()
        hidden = torch.randn(ROWS, 14, weight.shape[1], dtype=weight.dtype)[:, -KEPT:]
        results[f"output embedding, {dtype}: slice / contiguous"] = paired(
            lambda h=hidden, w=weight: linear(h, w),
            lambda h=hidden, w=weight: linear(h.contiguous(), w),
            arguments.runs,
        )
        network = LoRA().apply(model.network, seed=0)
        network.train()
        lines = (files("instil") / "demo" / "inputs.jsonl").read_text(encoding="utf-8").splitlines()
        queries = [json.loads(line)["input"] for line in lines[:ROWS]]
        prompts = [model.tokenizer(f"Q: {query}\nA:")["input_ids"] for query in queries]
        completions = [model.tokenizer(" camping chair\n")["input_ids"]] * ROWS
        padded, packed = (
            collate(prompts, completions, pad_id=model.pad_id),
            pack(prompts, completions),
        )

        def step(batch: object, network: object = network) -> None:
            completion_logits(network, batch).logsumexp(-1).sum().backward()

        results[f"student step, {dtype}: padded / packed"] = {
            "padded_positions": padded.input_ids_BL.numel(),
            "packed_positions": packed.input_ids_BL.numel(),
            **paired(lambda b=padded: step(b), lambda b=packed: step(b), arguments.runs),
        }
    print(json.dumps(results, indent=1))
    if arguments.output:
        record = {
            "command": "python benchmarks/student_step.py",
            "results": results,
            "environment": environment.describe(),
        }
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
