"""Measures the size of stored targets, and their distance from the teacher's whole distributions.

    python benchmarks/target_store.py --data FOLDER
        [--rows 16] [--output benchmarks/results/target_store.json]

FOLDER holds `gsm8k/train.jsonl` (Cobbe et al. 2021, arXiv:2110.14168) with the fields `question`
and `answer`. The first 8 rows are the teacher's demonstrations, as turns of a chat. The gold
answers of the next rows are the completions. For each setting a store is written and read again.
KL(teacher || model without the demonstrations), in nats per token, is computed over the vocabulary
and over what the store holds. The error is the difference as a share of the former. With draws,
that is an unbiased estimate. `spread` is the root mean square error of the loss of a single token.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instil.losses import ForwardKL
from instil.models.batch import collate
from instil.models.cache import SharedPrefix
from instil.models.forward import completion_logits
from instil.models.load import LanguageModel, load
from instil.prompts.context import Context, FewShot
from instil.prompts.format import prompt_format
from instil.prompts.pair import AlignedPair
from instil.prompts.rendered import RenderedRows, Windows
from instil.recipe.sections import Prompt
from instil.system import environment
from instil.targets.draws import points, sparse
from instil.targets.prediction import Targets
from instil.targets.selection import Selection
from instil.targets.store import StorePlan, TargetStore, build
from instil.tasks.rows import Row

MODEL = "bundled:smollm2-135m-instruct"
DEMONSTRATIONS = 8
SETTINGS = (
    Selection(top_k=256, min_probability=5e-4, mass_per_draw=1e-3),
    Selection(top_k=256, min_probability=2e-4, mass_per_draw=2e-3),
    Selection(top_k=256, min_probability=1e-3, mass_per_draw=1e-3),
    Selection(top_k=256, min_probability=1e-3, mass_per_draw=2e-3),
    Selection(top_k=256, min_probability=5e-4),
    Selection(top_k=1024, min_probability=2e-4),
    Selection(top_k=4096, min_probability=4e-5),
    Selection(top_k=64, mass=0.99),
    Selection(top_k=64, mass=0.998),
    Selection(top_k=256, mass=0.999),
    Selection(top_k=1024, mass=0.9999),
)


def aligned(model: LanguageModel, data: Path, rows: int) -> list[AlignedPair]:
    """The completions after both prompts."""
    lines = (data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    read = [json.loads(line) for line in lines[: DEMONSTRATIONS + rows]]
    known = [Row(input=one["question"], output=one["answer"]) for one in read]
    context = Context.of(FewShot(known[:DEMONSTRATIONS]))
    form = prompt_format(model.tokenizer, Prompt(format="chat"))
    prepared = RenderedRows.of("row", known[DEMONSTRATIONS:], form, context, gold=True)
    windows = Windows(teacher=model.window, student=model.window)
    return prepared.pairs(list(enumerate(prepared.need_gold())), windows)


@torch.inference_mode()
def logits(
    model: LanguageModel, prompts: list[list[int]], completions: list[list[int]]
) -> list[Tensor]:
    """(N, V) of each completion."""
    prefix = SharedPrefix(model.network, prompts)
    return [
        completion_logits(
            model.network,
            collate([prompt], [completion], pad_id=model.pad_id, prefix=prefix.length),
            cache=prefix.cache(1),
        )
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def dense(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    """KL of each token, shape (N,)."""
    p_NV, q_NV = teacher_NV.log_softmax(-1), student_NV.log_softmax(-1)
    return (p_NV.exp() * (p_NV - q_NV)).sum(-1)


def measure(
    folder: Path,
    plan: StorePlan,
    completions: list[list[int]],
    teacher: list[Tensor],
    student: list[Tensor],
) -> dict[str, Any]:
    """Writes one store, reads it again and compares."""

    def score(numbers: Sequence[int]) -> Iterator[tuple[int, list[int], Targets]]:
        for number in numbers:
            made = sparse(
                teacher[number],
                points([number], completions[number]),
                kept=plan.kept,
                temperature=plan.temperature,
            )
            yield number, completions[number], made

    start = time.perf_counter()
    build(folder, plan, score)
    written = time.perf_counter() - start
    start = time.perf_counter()
    read = list(TargetStore.open(folder))
    seconds = time.perf_counter() - start
    whole = torch.cat([dense(t, s) for t, s in zip(teacher, student, strict=True)])
    kl = ForwardKL()
    stored = torch.cat(
        [
            kl(logits_NV, torch.tensor(row.completion), row.targets)
            for logits_NV, row in zip(student, read, strict=True)
        ]
    )
    logsumexp = torch.cat([row.targets.logsumexp_N for row in read])
    shards = TargetStore.open(folder).info.shards
    tokens = sum(shard.tokens for shard in shards)
    return {
        **plan.kept.model_dump(exclude={"at_least"}),
        "tokens": tokens,
        "kept_mean": sum(shard.kept for shard in shards) / tokens,
        "kept_max": max(shard.most_kept for shard in shards),
        "bytes_per_token": sum(file.stat().st_size for file in folder.iterdir()) / tokens,
        "kl": whole.mean().item(),
        "kl_stored": stored.mean().item(),
        "error_share_of_kl": (stored.mean() / whole.mean() - 1).item(),
        "spread": (stored - whole).square().mean().sqrt().item(),
        "logsumexp_error_max": (logsumexp - torch.cat(teacher).logsumexp(-1)).abs().max().item(),
        "write_seconds": written,
        "read_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    model = load(MODEL, dtype="float32")
    pairs = aligned(model, arguments.data, arguments.rows)
    completions = [pair.completion for pair in pairs]
    teacher = logits(model, [pair.teacher_prompt for pair in pairs], completions)
    student = logits(model, [pair.student_prompt for pair in pairs], completions)
    results = []
    for kept in SETTINGS:
        plan = StorePlan(
            fingerprint="benchmark",
            lengths=[len(completion) for completion in completions],
            vocabulary=teacher[0].shape[-1],
            kept=kept,
        )
        with tempfile.TemporaryDirectory() as name:
            one = measure(Path(name), plan, completions, teacher, student)
        results.append(one)
        print(
            f"probability >= {kept.min_probability:g}, mass {kept.mass:g}, K <= {kept.top_k}, "
            f"a draw for {kept.mass_per_draw:g}: {one['kept_mean']:.1f} stored per token, "
            f"{one['bytes_per_token']:.1f} bytes per token, KL {one['kl']:.4f}, from the store "
            f"{one['kl_stored']:.4f} ({one['error_share_of_kl']:+.2%}), spread {one['spread']:.4f}, "
            "logsumexp within "
            f"{one['logsumexp_error_max']:.4f}; {one['write_seconds']:.2f} s to write, "
            f"{one['read_seconds']:.2f} s to read",
            flush=True,
        )
    if arguments.output:
        threads = os.environ.get("OMP_NUM_THREADS")
        prefix = f"OMP_NUM_THREADS={threads} " if threads else ""
        rows = f" --rows {arguments.rows}" if arguments.rows != parser.get_default("rows") else ""
        record = {
            "command": f"{prefix}python benchmarks/target_store.py --data FOLDER{rows}",
            "results": {
                "rows": len(pairs),
                "demonstrations": DEMONSTRATIONS,
                "teacher_prompt_tokens_mean": sum(len(p.teacher_prompt) for p in pairs)
                / len(pairs),
                "settings": results,
            },
            "environment": environment.describe(),
        }
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
