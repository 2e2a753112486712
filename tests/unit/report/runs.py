"""A finished run on disk: the numbers of the singular-plural task in the design notes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.unit.report.studies import proportion, write_folder

from instil.methods import MethodName
from instil.report import Study, read_study
from instil.results.schema import CONTEXT, ENVIRONMENT, Message, MethodResult, Prediction, Results

ROWS = "evaluation rows"
METHODS: tuple[MethodName, ...] = ("distillation", "zero_shot", "in_context")
NOUNS = {
    "apple": "apples",
    "mouse": "mice",
    "leaf": "leaves",
    "city": "cities",
    "knife": "knives",
    "child": "children",
}


def answers(hits: Sequence[Iterable[bool]], *, graded: bool = True) -> list[Prediction]:
    """A line per row and method; `hits` says which rows each of `METHODS` gets right."""
    lines = []
    nouns = list(NOUNS.items())
    for method, right in zip(METHODS, hits, strict=True):
        for row, hit in enumerate(right):
            word, plural = nouns[row % len(nouns)]
            wrong = "Apple is a fruit that grows on trees" if method == "zero_shot" else f"{word}en"
            said = plural if hit else wrong
            lines.append(
                Prediction(
                    set=ROWS,
                    row=row,
                    method=method,
                    input=f"{word} {row}",
                    expected=plural if graded else None,
                    predicted=said,
                    correct=hit if graded else None,
                    text=said,
                )
            )
    return lines


def first_rows(right: int, n: int, *, start: int = 0) -> list[bool]:
    """As many right rows as asked for, one after the other."""
    return [start <= row < start + right for row in range(n)]


def build_predictions(rows: int = 4, *, graded: bool = True) -> list[Prediction]:
    """All but zero-shot are right, and distillation loses every third row from the second on."""
    return answers(
        [[row % 3 != 1 for row in range(rows)], [False] * rows, [True] * rows], graded=graded
    )


def build_results(lines: Sequence[Prediction], **changes: Any) -> Results:
    """The results of these answers; `kl` and `agreement` are pairs, before and after training."""
    kl, agreement = changes.pop("kl", (3.214, 0.187)), changes.pop("agreement", (0.312, 0.934))
    drift, seconds = changes.pop("drift", 0.041), changes.pop("seconds", (0.118, 0.112, 0.298))
    close = {"zero_shot": (kl[0], agreement[0]), "distillation": (kl[1], agreement[1])}
    measured = zip(METHODS, (8.4, 8.4, 79.6), seconds, strict=True)
    phases = {
        "load": (0.9, 61.0, 900),
        "generate": (41.3, 14_210.0, 1240),
        "teach": (12.8, 15_880.0, 1310),
        "train": (188.0, 51_200.0, 2210),
        "evaluate": (95.4, 60_333.0, 1400),
    }
    fields: dict[str, Any] = {
        "instil_version": "0.1.0",
        "recipe": {
            "model": "bundled:smollm2-135m-instruct",
            "task": {"name": "files", "inputs": "words.jsonl"},
            "method": "distillation",
            "tuning": {"name": "lora", "r": 16},
            "training": {"max_steps": 80},
            "evaluation": {"baselines": ["zero_shot", "in_context"]},
        },
        "model": "bundled:smollm2-135m-instruct",
        "teacher_model": None,
        "dtype": "float32",
        "seed": 0,
        "task": "files",
        "prompt": {
            "format": "plain",
            "pattern": "Q: {input}\nA:",
            "messages": None,
            "stop": ["\n"],
            "end_ids": [0],
            "max_new_tokens": 16,
        },
        "context": {"description": "8 demonstrations", "k": 8, "tokens": 71, "sha256": "0" * 64},
        "methods": [
            method_result(method, lines, tokens, time, close.get(method), drift)
            for method, tokens, time in measured
        ],
        "training": {
            "rows": 200,
            "tokens": 803,
            "truncated_completions": 0,
            "steps": 80,
            "trainable_parameters": 1_220_000,
            "trainable_share": 0.00907,
            "loss": [(s, 2.6 * math.exp(-s / 18) + 0.12 + 0.02 * (s % 3)) for s in range(5, 81, 5)],
        },
        "phases": {
            name: {
                "wall_seconds": wall,
                "cpu_user_seconds": wall * 1.84,
                "cpu_system_seconds": wall * 0.06,
                "peak_rss_mb": peak,
                "mean_rss_mb": peak * 0.86,
                "tokens": int(tokens),
                "steps": 80 if name == "train" else 13,
            }
            for name, (wall, tokens, peak) in phases.items()
        },
        "shipped_bytes": 4_900_000,
    }
    return Results.model_validate(fields | changes)


def method_result(
    method: str,
    lines: Sequence[Prediction],
    tokens: float,
    seconds: float | None,
    close: tuple[float, float] | None,
    drift: float | None,
) -> MethodResult:
    """What one method scored, by its answers."""
    own = [line for line in lines if line.method == method]
    graded = all(line.correct is not None for line in own)
    score = {
        "name": ROWS,
        "domain": "in",
        "rows": len(own) or 100,
        "accuracy": proportion(own) if own and graded else None,
        "cross_entropy": {"zero_shot": 3.31, "in_context": 0.39}.get(method, 0.42),
        "fidelity": close and {"kl_to_teacher": close[0], "agreement": close[1]},
        "tokens": 412,
        "completions": "gold" if graded else "teacher",
    }
    moved = method == "distillation" and drift is not None
    return MethodResult.model_validate(
        {
            "method": method,
            "scores": [score],
            "prompt_tokens_mean": tokens,
            "seconds_per_query": seconds,
            "drift": moved_by(drift) if drift is not None and moved else None,
        }
    )


def moved_by(drift: float) -> dict[str, Any]:
    """Drift on two kinds of text."""
    kinds = {
        kind: {"kl_to_base": drift, "same_top": same, "tokens": 1024}
        for kind, same in (("prose", 0.91), ("code", 0.95))
    }
    return {"kl_to_base": drift, "same_top": 0.93, "tokens": 2048, "kinds": kinds}


def write_run(
    folder: Path,
    results: Results,
    lines: Iterable[Prediction] = (),
    *,
    environment: dict[str, Any] | None = None,
    context: str = "",
) -> Study:
    """Writes a run as `instil distill` would leave it, and reads it again."""
    write_folder(folder, results, lines)
    if environment is not None:
        (folder / ENVIRONMENT).write_text(json.dumps(environment), encoding="utf-8")
    if context:
        (folder / CONTEXT).write_text(context, encoding="utf-8")
    return read_study([folder])


def build_run(
    folder: Path,
    right: tuple[int, int, int] | None = (1, 82, 80),
    n: int = 100,
    *,
    start: int = 0,
    stored: bool = True,
    **changes: Any,
) -> Study:
    """A run by how many rows zero-shot, in-context and the student get right; None: no gold outputs.

    All methods are right on the first rows, but for the student, which begins at `start`.
    """
    zero, context, student = right or (0, n, n)
    hits = [first_rows(student, n, start=start), first_rows(zero, n), first_rows(context, n)]
    lines = answers(hits, graded=right is not None)
    return write_run(folder, build_results(lines, **changes), lines if stored else ())


def chat() -> dict[str, Any]:
    """The prompt of a run in chat format."""
    turns = [
        Message(role="system", content="Answer with one word."),
        Message(role="user", content="{input}"),
    ]
    return {
        "format": "chat",
        "pattern": None,
        "messages": [turn.model_dump() for turn in turns],
        "stop": [],
        "end_ids": [0],
        "max_new_tokens": 16,
    }
