"""A finished run in memory: the numbers of the singular-plural task in the design notes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from instil.results.schema import Message, Prediction, Proportion, Results


def wilson(right: int, n: int) -> Proportion:
    """The interval by its formula, so that these tests need no other part of instil."""
    z = 1.959964
    p, z2 = right / n, z * z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if right == 0 else middle - half
    high = 1.0 if right == n else middle + half
    return Proportion(value=p, low=low, high=high, n=n)


def build_results(
    right: tuple[int, int, int] | None = (1, 82, 80), n: int = 100, **changes: Any
) -> Results:
    """`right` counts the right answers of zero-shot, in-context and distilled; None: no gold."""
    scores: list[Proportion | None] = [wilson(k, n) for k in right] if right else [None] * 3
    gain = right[1] - right[0] if right else 0
    phases = {
        "load": (0.9, 61.0, 900),
        "generate": (41.3, 14_210.0, 1240),
        "teach": (12.8, 15_880.0, 1310),
        "train": (188.0, 51_200.0, 2210),
        "evaluate": (95.4, 60_333.0, 1400),
    }
    fields: dict[str, Any] = {
        "instil_version": "0.1.0",
        "model": "bundled:smollm2-135m-instruct",
        "teacher_model": None,
        "dtype": "float32",
        "seed": 0,
        "format": "plain",
        "student_prompt": "Q: {input}\nA:",
        "student_messages": None,
        "stop": ["\n"],
        "max_new_tokens": 16,
        "context": {"kind": "few_shot", "demonstrations": 8, "tokens": 71},
        "methods": {
            name: {"accuracy": score, "prompt_tokens_mean": tokens, "seconds_per_query": seconds}
            for name, score, tokens, seconds in zip(
                ("zero_shot", "in_context", "distilled"),
                scores,
                (8.4, 79.6, 8.4),
                (0.112, 0.298, 0.118),
                strict=True,
            )
        },
        "recovery": (right[2] - right[0]) / gain if right and gain > 0 else None,
        "fidelity": {
            "kl_to_teacher": {"zero_shot": 3.214, "distilled": 0.187},
            "top1_agreement": {"zero_shot": 0.312, "distilled": 0.934},
            "n_tokens": 412,
            "completions": "gold" if right else "teacher",
        },
        "drift": {"kl_to_base": 0.041, "n_tokens": 2048},
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
        "cost": {"prompt_tokens_saved_per_query": 71.2, "break_even_queries": 1345},
    }
    return Results.model_validate(fields | changes)


def build_predictions(rows: int = 4, graded: bool = True) -> list[Prediction]:
    """Row 0 is right for all but zero-shot; every third one is then lost in distillation."""
    words = ["apple", "mouse", "leaf", "city", "knife", "child"]
    plurals = ["apples", "mice", "leaves", "cities", "knives", "children"]
    predictions = []
    for row in range(rows):
        word, plural = words[row % 6], plurals[row % 6]
        outputs = {
            "zero_shot": "Apple is a fruit that grows on trees",
            "in_context": plural,
            "distilled": f"{word}s" if row % 3 == 1 else plural,
        }
        for method, output in outputs.items():
            predictions.append(
                Prediction.model_validate(
                    {
                        "row": row,
                        "method": method,
                        "input": word,
                        "expected": plural if graded else None,
                        "output": output,
                        "correct": output == plural if graded else None,
                    }
                )
            )
    return predictions


def chat() -> dict[str, Any]:
    """The fields of a chat run that differ from a plain one."""
    turns = [
        Message(role="system", content="Answer with one word."),
        Message(role="user", content="{input}"),
    ]
    return {"format": "chat", "student_prompt": None, "student_messages": turns}


@pytest.fixture
def make_results() -> Callable[..., Results]:
    """Builds `Results`; any field can be given by name."""
    return build_results


@pytest.fixture
def make_predictions() -> Callable[..., list[Prediction]]:
    """Builds predictions of all three methods."""
    return build_predictions


@pytest.fixture
def chat_fields() -> dict[str, Any]:
    """What `make_results` takes for a chat run."""
    return chat()
