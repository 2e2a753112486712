"""Measures the memory of losses over stored targets, with their gradient, in chunks and at once.

    OMP_NUM_THREADS=1 python benchmarks/loss_memory.py
        [--output benchmarks/results/loss_memory.json]

Each loss is computed against K = 256 stored outcomes at N = 2,048 positions of a model of width D =
576 (SmolLM2-135M's), in float32, with its vocabulary and with Qwen3's: in chunks of positions.
Forward KL is also computed at four times the positions, and over all logits at once. Hidden states,
targets and a frozen output layer exist before. Counted is the additional memory of the process
until the gradient of the hidden states exists. Each measurement is a process of its own.

Bar: in chunks, the larger vocabulary takes at most 15 % more than the smaller one. Exit status 1 if
it does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from torch import Tensor

from instil.losses import CrossEntropy, ForwardKL, JensenShannon, LogitMSE, ReverseKL
from instil.models.chunked import MOST_LOGITS, Head, chunked_sum
from instil.system import environment
from instil.targets.prediction import Targets

POSITIONS, WIDTH, KEPT = 2048, 576, 256
VOCABULARIES = (49_152, 151_936)
LOSSES = {
    loss().name: loss for loss in (ForwardKL, ReverseKL, JensenShannon, LogitMSE, CrossEntropy)
}
CASES = [
    *(("chunked", name, POSITIONS) for name in LOSSES),
    ("chunked", "forward_kl", 4 * POSITIONS),
    ("whole", "forward_kl", POSITIONS),
]
MEBIBYTE = 2**20
MOST_GROWTH = 1.15


def targets_of(positions: int, vocabulary: int) -> Targets:
    """What a store would give, made without any logits: falling probabilities and a tail."""
    ids_NK = torch.randint(vocabulary - KEPT, (positions, 1)) + torch.arange(KEPT)
    logprobs_K = torch.cat([torch.arange(KEPT) / -32.0, torch.tensor([-2.0])]).log_softmax(-1)
    logprobs_NK = logprobs_K[:-1].expand(positions, -1).contiguous()
    log_tail_N = logprobs_K[-1].expand(positions).contiguous()
    return Targets(ids_NK, logprobs_NK, log_tail_N, torch.zeros(positions), temperature=1.0)


def gradient(hidden_ND: Tensor, head: Head, targets: Targets, way: str, name: str) -> float:
    """Forward and backward; the loss."""
    loss = LOSSES[name]()
    completion_N = torch.zeros(len(hidden_ND), dtype=torch.long)
    if way == "chunked":
        total = chunked_sum(
            hidden_ND,
            head,
            lambda logits_CV, start, end: loss(
                logits_CV, completion_N[start:end], targets.part(start, end)
            ),
        )
    else:
        total = loss(head(hidden_ND), completion_N, targets).sum()
    (total / len(hidden_ND)).backward()
    return total.item() / len(hidden_ND)


def head_of(vocabulary: int) -> Head:
    layer = torch.nn.Linear(WIDTH, vocabulary, bias=False, device="meta").to_empty(device="cpu")
    layer.weight.requires_grad_(False).normal_(std=0.05)
    return Head(layer, vocabulary=vocabulary, autocast=None)


def high_water() -> int:
    """The most memory that this process has held, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(way: str, name: str, positions: int, vocabulary: int) -> dict[str, float]:
    """In this process."""
    torch.manual_seed(0)
    few = 2 * KEPT
    gradient(torch.randn(4, WIDTH, requires_grad=True), head_of(few), targets_of(4, few), way, name)
    head, targets = head_of(vocabulary), targets_of(positions, vocabulary)
    hidden_ND = torch.randn(positions, WIDTH, requires_grad=True)
    before, held = high_water(), psutil.Process().memory_info().rss
    start = time.perf_counter()
    value = gradient(hidden_ND, head, targets, way, name)
    seconds = time.perf_counter() - start
    assert hidden_ND.grad is not None
    return {
        "peak_mib": (high_water() - before) / MEBIBYTE,
        "baseline_mib": before / MEBIBYTE,
        # If the baseline's peak were above this, `peak_mib` would miss the difference.
        "held_at_baseline_mib": held / MEBIBYTE,
        "seconds": seconds,
        "loss": value,
        "gradient_norm": hidden_ND.grad.norm().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        way, name, positions, vocabulary = arguments.only
        print(json.dumps(measure(way, name, int(positions), int(vocabulary))))
        return
    results = []
    for way, name, positions in CASES:
        found = {}
        for vocabulary in VOCABULARIES:
            case = [way, name, str(positions), str(vocabulary)]
            command = [sys.executable, __file__, "--only", *case]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[str(vocabulary)] = json.loads(printed)
        small, large = (one["peak_mib"] for one in found.values())
        case = {"way": way, "loss": name, "positions": positions, "growth": large / small}
        print(case, round(small), round(large), flush=True)
        results.append({**case, "vocabularies": found})
    growth = max(one["growth"] for one in results if one["way"] == "chunked")
    record = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/loss_memory.py",
        "settings": {
            "width": WIDTH,
            "top_k": KEPT,
            "dtype": "float32",
            "logits_of_a_chunk": MOST_LOGITS,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "results": results,
        "chunked_growth": growth,
        "bar": MOST_GROWTH,
        "holds": growth <= MOST_GROWTH,
    }
    if arguments.output:
        record["environment"] = environment.describe()
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if record["holds"] else 1)


if __name__ == "__main__":
    main()
