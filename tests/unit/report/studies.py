"""Studies on disk: cells whose scores follow from their predictions, as real ones do."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from instil.report import Study, read_study
from instil.results.schema import (
    CELLS,
    FAILURE,
    INDEX,
    PREDICTIONS,
    RESULTS,
    Failure,
    Prediction,
    Results,
    StudyIndex,
)
from instil.results.scores import SetScore
from instil.results.statistics import wilson
from instil.system.files import write_lines

LABELS = ["entailment", "neutral", "contradiction"]
SETS = {"mnli_matched": "in", "hans": "out"}
PROMPT = {
    "format": "plain",
    "pattern": "{premise} {hypothesis}",
    "messages": None,
    "stop": [],
    "end_ids": [0],
    "max_new_tokens": None,
    "words": {label: [f" {label}"] for label in LABELS},
}


def predict(
    right: Iterable[bool], labels: list[str], set: str, texts: Mapping[int, str] | None = None
) -> list[Prediction]:
    """A line per row: gold labels in turn, and where it is wrong the label that comes next."""
    lines = []
    for row, hit in enumerate(right):
        gold = labels[row % len(labels)]
        guess = gold if hit else labels[(row + 1) % len(labels)]
        sure = 0.5 + 0.4 * ((row * 7 % 10) / 10)
        rest = (1 - sure) / (len(labels) - 1)
        lines.append(
            Prediction(
                set=set,
                row=row,
                method="zero_shot",  # that of its cell, once it is written
                input=(texts or {}).get(row, f"Premise {row} of {set}. Hypothesis {row}."),
                expected=gold,
                predicted=guess,
                correct=hit,
                probabilities={label: sure if label == guess else rest for label in labels},
            )
        )
    return lines


def proportion(lines: list[Prediction]) -> dict[str, Any]:
    """The share of the lines that are right."""
    hits, n = sum(bool(line.correct) for line in lines), len(lines)
    low, high = wilson(hits / n, n)
    return {"value": hits / n, "low": low, "high": high, "n": n}


def score(lines: list[Prediction], labels: list[str], **changes: Any) -> dict[str, Any]:
    """The fields of a `SetScore` that follow from predictions, and plausible others."""
    confusion = {gold: dict.fromkeys(labels, 0) for gold in labels}
    for line in lines:
        confusion[line.expected or ""][line.predicted] += 1
    golds = [sum(row.values()) for row in confusion.values()]
    fields: dict[str, Any] = {
        "name": lines[0].set,
        "domain": SETS.get(lines[0].set, "in"),
        "rows": len(lines),
        "accuracy": proportion(lines),
        "chance": 1 / len(labels),
        "majority": max(golds) / len(lines),
        "calibration_error": 0.11,
        "verbalizer_mass": 0.93,
        "confusion": confusion,
    }
    return fields | changes


def phase(wall: float, peak: float) -> dict[str, Any]:
    """A phase's cost."""
    return {
        "wall_seconds": wall,
        "cpu_user_seconds": 1.8 * wall,
        "cpu_system_seconds": 0.1 * wall,
        "peak_rss_mb": peak,
        "mean_rss_mb": 0.9 * peak,
        "tokens": int(900 * wall),
        "steps": int(wall) + 1,
    }


def build_cell(
    method: str,
    lines: list[Prediction],
    *,
    seed: int = 0,
    tuning: str | None = None,
    k: int = 0,
    name: str = "",
    labels: list[str] | None = None,
    varied: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    **changes: Any,
) -> Results:
    """The results of a cell, whose scores are those of its predictions."""
    labels = LABELS if labels is None else labels
    by_set: dict[str, list[Prediction]] = {}
    for line in lines:
        by_set.setdefault(line.set, []).append(line)
    taught = {"fidelity": {"kl_to_teacher": 0.21, "agreement": 0.88}}
    close = taught if method == "distillation" else {}
    trained = tuning is not None
    share = {"full": 1.0, "lora": 0.008, "bitfit": 0.001}.get(tuning or "", 0.0)
    memory = {"full": 2600, "lora": 1500, "bitfit": 1300}.get(tuning or "", 900) + 12 * k
    phases = {"load": phase(1.2, 800), "evaluate": phase(20 + k, memory)}
    if trained:
        phases["train"] = phase(60 + 40 * share + 2 * k, memory + 200)
    if method == "distillation":
        phases["teach"] = phase(15 + 3 * k, 1200)
    own = {"method": method, "seed": seed}
    own |= {"tuning": tuning} if trained else {}
    own |= {"demonstrations.k": k} if k else {}
    settings = recipe or {
        "model": "tiny",
        "demonstrations": {"k": k or 8},
        "training": {"epochs": 3, "learning_rate": 0.0003},
        "objective": {"alpha": 0.5},
        "seed": seed,
    }
    if trained:
        settings = {**settings, "tuning": {"name": tuning, **settings.get("tuning", {})}}
    scores = [score(found, labels, **close) for found in by_set.values()]
    fields: dict[str, Any] = {
        "instil_version": "0.1.0",
        "name": name or f"{method}-{tuning}-k{k}-seed{seed}",
        "varied": own | (varied or {}),
        "recipe": settings,
        "model": "tiny",
        "teacher_model": None,
        "dtype": "float32",
        "task": "mnli",
        "labels": labels,
        "seed": seed,
        "prompt": PROMPT,
        "context": {"description": f"{k} demonstrations", "k": k} if k else None,
        "methods": [
            {
                "method": method,
                "scores": scores
                or [{"name": "mnli_matched", "domain": "in", "rows": 1, "accuracy": None}],
                "prompt_tokens_mean": 61.5 + (40 * k if method == "in_context" else 0),
            }
        ],
        "teacher": [score(found, labels) for found in by_set.values()] if close else [],
        "training": {
            "rows": 400,
            "steps": 100,
            "trainable_parameters": int(135_000_000 * share),
            "trainable_share": share,
            "loss": [(50, 0.9), (100, 0.4)],
        }
        if trained
        else None,
        "phases": phases,
        "reused": ["teach"] if method == "distillation" and tuning == "bitfit" else [],
        "shipped_bytes": int(540_000_000 * share),
    }
    return Results.model_validate(fields | changes)


Made = tuple[Results, list[Prediction]]


def cell(method: str, right: list[bool], seed: int = 0, **changes: Any) -> Made:
    """A cell of one set in domain, and its predictions."""
    lines = predict(right, LABELS, "mnli_matched")
    return build_cell(method, lines, seed=seed, **changes), lines


def study_of(folder: Path, *cells: Made, varied: Iterable[str] = ("method", "seed")) -> Study:
    """These cells as a study."""
    return read_study([write_study_folder(folder / "s", cells, varied=list(varied))])


def with_scores(results: Results, scores: Iterable[SetScore | dict[str, Any]]) -> Results:
    """The same results with other scores of their own method."""
    made = [SetScore.model_validate(one) for one in scores]
    own = results.methods[0].model_copy(update={"scores": made})
    return results.model_copy(update={"methods": [own, *results.methods[1:]]})


def draw(seed: int, name: str, share: float, rows: int, skill: str) -> list[bool]:
    """Which rows a method is right on: about a share of them, and alike in what is hard."""
    hard = random.Random(f"{name}-{seed}")
    own = random.Random(f"{name}-{seed}-{skill}")
    return [0.7 * hard.random() + 0.3 * own.random() < share for _ in range(rows)]


def write_folder(folder: Path, results: Results, lines: Iterable[Prediction]) -> Path:
    """Writes a finished folder; the lines of a single method are stamped with it."""
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder / RESULTS)
    lines = list(lines)
    if len(results.methods) == 1:
        lines = [line.model_copy(update={"method": results.method}) for line in lines]
    if lines:
        write_lines(folder / PREDICTIONS, lines)
    return folder


def write_study_folder(
    folder: Path,
    cells: Iterable[tuple[Results, list[Prediction]]],
    *,
    varied: list[str],
    title: str = "Four methods on MNLI",
    description: str = "",
    failures: Iterable[Failure] = (),
    missing: Iterable[str] = (),
) -> Path:
    """Writes a study as a run would leave it."""
    names = []
    for results, lines in cells:
        write_folder(folder / CELLS / results.name, results, lines)
        names.append(results.name)
    for failure in failures:
        place = folder / CELLS / failure.name
        place.mkdir(parents=True)
        (place / FAILURE).write_text(failure.model_dump_json(), encoding="utf-8")
        names.append(failure.name)
    folder.mkdir(exist_ok=True)
    index = StudyIndex(
        title=title, description=description, varied=varied, cells=[*names, *missing]
    )
    index.write(folder / INDEX)
    return folder


def build_study(
    folder: Path,
    *,
    ks: tuple[int, ...] = (2, 8, 16),
    tunings: tuple[str, ...] = ("full", "lora", "bitfit"),
    seeds: tuple[int, ...] = (0, 1, 2),
    rows: int = 200,
    texts: Mapping[int, str] | None = None,
    **changes: Any,
) -> Study:
    """Every method, k, tuning and seed; in domain the methods differ, out of it none has skill."""
    cells = []
    for seed in seeds:
        plans: list[tuple[str, str | None, int, float]] = [("zero_shot", None, 0, 0.38)]
        plans += [("in_context", None, k, 0.44 + 0.008 * k) for k in ks]
        plans += [("pattern_fine_tuning", t, 0, 0.52) for t in tunings]
        plans += [("vanilla_fine_tuning", t, 0, 0.41) for t in tunings]
        plans += [
            ("distillation", t, k, 0.46 + 0.01 * k - 0.03 * (t == "bitfit"))
            for t in tunings
            for k in ks
        ]
        for method, tuning, k, share in plans:
            lines = []
            for name, domain in SETS.items():
                part = share if domain == "in" else 0.39
                right = draw(seed, name, part, rows, f"{method}{tuning}{k}")
                lines += predict(right, LABELS, name, texts)
            cells.append((build_cell(method, lines, seed=seed, tuning=tuning, k=k), lines))
    varied = ["method", "tuning", "demonstrations.k", "seed"]
    return read_study([write_study_folder(folder, cells, varied=varied, **changes)])
