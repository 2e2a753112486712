"""A study on disk whose answers are text: reasoning, then a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.unit.report.studies import build_cell, draw, proportion, with_scores, write_study_folder

from instil.report import Study, read_study
from instil.results.schema import Prediction, Results
from instil.results.statistics import wilson

VARIED = ["method", "seed", "demonstrations.k", "demonstrations.answers"]
SETS = {"gsm8k": "in", "svamp": "out"}
Plan = tuple[str, int, str, float, float | None, float]
PLANS: tuple[Plan, ...] = (
    # method, k, answers, accuracy, KL to the teacher, cross-entropy
    ("zero_shot", 0, "gold", 0.30, 0.61, 1.12),
    ("in_context", 8, "gold", 0.55, None, 0.62),
    ("pattern_fine_tuning", 0, "gold", 0.40, 0.35, 0.58),
    ("distillation", 8, "gold", 0.52, 0.12, 0.64),
    ("distillation", 0, "gold", 0.28, 0.05, 0.95),
    ("in_context", 8, "shuffled", 0.45, None, 0.88),
    ("distillation", 8, "shuffled", 0.36, 0.19, 0.86),
)


def write(right: Iterable[bool], name: str, texts: Mapping[int, str]) -> list[Prediction]:
    """A line per row, its gold number being 3 more than its own; a wrong answer is 2 more."""
    lines = []
    for row, hit in enumerate(right):
        number = str(row + (3 if hit else 2))
        written = f"There were {row} apples.\nWith more of them there are {number}.\n#### {number}"
        lines.append(
            Prediction(
                set=name,
                row=row,
                method="zero_shot",  # that of its cell, once it is written
                input=f"Ann has {row} apples and buys 3. How many has she ({name})?",
                expected=str(row + 3),
                predicted=number,
                correct=hit,
                text=texts.get(row, written),
            )
        )
    return lines


def score(lines: list[Prediction], kl: float | None, cross_entropy: float) -> dict[str, Any]:
    """The fields of a `SetScore` of text."""
    return {
        "name": lines[0].set,
        "domain": SETS[lines[0].set],
        "rows": len(lines),
        "accuracy": proportion(lines),
        "cross_entropy": cross_entropy,
        "fidelity": None if kl is None else {"kl_to_teacher": kl, "agreement": 1 - kl / 3},
        "tokens": 40 * len(lines),
        "completions": "gold",
    }


def checkpoints(share: float, kl: float, cross_entropy: float, seed: int) -> list[dict[str, Any]]:
    """A student that gets better for four fifths of its training."""
    found = []
    for step, part in ((0, 0.0), (50, 0.5), (100, 0.8), (200, 1.0), (250, 0.95)):
        value = round(100 * (0.3 + (share - 0.3) * part)) / 100 + 0.01 * seed * (step > 0)
        low, high = wilson(value, 100)
        found.append(
            {
                "step": step,
                "accuracy": {"value": value, "low": low, "high": high, "n": 100},
                "cross_entropy": 1.1 + (cross_entropy - 1.1) * part + 0.01 * seed,
                "fidelity": {
                    "kl_to_teacher": 0.6 + (kl - 0.6) * part + 0.005 * seed,
                    "agreement": 0.7 + 0.2 * part,
                },
                "kept": step == 200,
            }
        )
    return found


def build(
    plan: Plan, seed: int, rows: int, texts: Mapping[int, str]
) -> tuple[Results, list[Prediction]]:
    """One cell: its settings stand in `varied` only where the grid names them."""
    method, k, answers, share, kl, cross_entropy = plan
    lines, scores = [], []
    for name, domain in SETS.items():
        part = share if domain == "in" else share / 2
        right = draw(seed, name, part, rows, f"{method}{k}{answers}")
        of_set = write(right, name, texts)
        scores.append(score(of_set, kl, cross_entropy))
        lines += of_set
    own: dict[str, Any] = {"method": method, "seed": seed}
    own |= {"demonstrations.k": 0} if method == "distillation" and not k else {}
    own |= {"demonstrations.answers": answers} if answers != "gold" else {}
    trained = method in ("pattern_fine_tuning", "distillation")
    training = {
        "rows": 200,
        "tokens": 8000,
        "steps": 250,
        "trainable_parameters": 1_000_000,
        "trainable_share": 0.008,
        "loss": [(50, 0.9), (250, 0.4)],
        "checkpoints": checkpoints(share, kl or 0, cross_entropy, seed),
    }
    made = build_cell(
        method,
        [],
        seed=seed,
        tuning="lora" if trained else None,
        k=k,
        name=f"{method}-k{k}-{answers}-seed{seed}",
        recipe={"demonstrations": {"k": k or 8, "answers": answers}, "seed": seed},
        labels=[],
        task="gsm8k",
        teacher=[],
        training=training if trained else None,
        prompt={
            "format": "plain",
            "pattern": "Question: {question}\nAnswer:",
            "messages": None,
            "stop": ["\n\n"],
            "end_ids": [0],
            "max_new_tokens": 256,
        },
    )
    return with_scores(made.model_copy(update={"varied": own}), scores), lines


def build_written_study(
    folder: Path,
    *,
    plans: Iterable[Plan] = PLANS,
    seeds: Iterable[int] = (0, 1, 2),
    rows: int = 150,
    texts: Mapping[int, str] | None = None,
) -> Study:
    """Every method and control on two sets; a wrong number stands in every wrong answer."""
    cells = [build(plan, seed, rows, texts or {}) for seed in seeds for plan in plans]
    title = "Word problems"
    return read_study([write_study_folder(folder, cells, varied=VARIED, title=title)])
