"""Finished runs and studies, built by hand: the files that `instil.load` opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instil.methods import MethodName
from instil.results.schema import (
    CELLS,
    INDEX,
    PREDICTIONS,
    RESULTS,
    ContextFacts,
    MethodResult,
    PhaseCost,
    Prediction,
    Results,
    SentPrompt,
    StudyIndex,
)
from instil.results.scores import Drift, Fidelity, Interval, SetScore
from instil.results.statistics import proportion
from instil.results.training import Training
from instil.system.files import write_lines

COST = PhaseCost(
    wall_seconds=2.0,
    cpu_user_seconds=2.0,
    cpu_system_seconds=0.1,
    peak_rss_mb=100.0,
    mean_rss_mb=90.0,
    tokens=1000,
    steps=10,
)


def score(
    right: int | None, *, name: str = "words", domain: Any = "in", kl: float | None = None
) -> SetScore:
    """A score on ten rows; `right` of them are answered correctly, None where no row has an output."""
    return SetScore(
        name=name,
        domain=domain,
        rows=10,
        accuracy=None if right is None else proportion([n < right for n in range(10)]),
        fidelity=None if kl is None else Fidelity(kl_to_teacher=kl, agreement=0.9),
        cross_entropy=0.5,
    )


def method_result(
    method: MethodName, *scores: SetScore, tokens: float = 20.0, drift: float | None = None
) -> MethodResult:
    """What a method scored."""
    return MethodResult(
        method=method,
        scores=list(scores),
        prompt_tokens_mean=tokens,
        seconds_per_query=0.25,
        drift=None if drift is None else Drift(kl_to_base=drift, tokens=100),
    )


def results(*methods: MethodResult, seed: int = 0, **more: Any) -> Results:
    """A finished cell of these methods."""
    trains = methods[0].method not in ("zero_shot", "in_context")
    training = Training(
        rows=10, steps=3, trainable_parameters=64, trainable_share=0.01, loss=[(1, 2.0), (3, 1.0)]
    )
    filled = {
        "instil_version": "0.1.0",
        "recipe": {"model": "tiny", "tuning": {"name": "lora"}, "seed": seed},
        "model": "tiny",
        "teacher_model": None,
        "dtype": "float32",
        "task": "files",
        "prompt": SentPrompt(
            format="plain",
            pattern="Q: {input}\nA:",
            messages=None,
            stop=["\n"],
            end_ids=[0],
            max_new_tokens=8,
        ),
        "context": ContextFacts(description="3 demonstrations", k=3, tokens=30.0),
        "training": training if trains else None,
        "phases": {"train": COST, "evaluate": COST},
    }
    return Results(methods=list(methods), seed=seed, **(filled | more))


def run_results() -> Results:
    """What `instil distill` leaves: a student, with the baselines beside it."""
    return results(
        method_result("distillation", score(8, kl=0.125), drift=0.01),
        method_result("zero_shot", score(2, kl=1.5)),
        method_result("in_context", score(9, kl=0.0), tokens=50.0),
        recovery_interval=Interval(low=0.471, high=1.25),
    )


def write_run(folder: Path, found: Results) -> Path:
    """The folder of a finished run."""
    folder.mkdir(parents=True)
    found.write(folder / RESULTS)
    said = Prediction(
        set="words",
        row=1,
        method=found.method,
        input="one",
        expected="1",
        predicted="1",
        correct=True,
    )
    write_lines(folder / PREDICTIONS, [said])
    (folder / "report.html").write_text("<html></html>")
    return folder


def write_study(folder: Path, cells: Sequence[Results], *, varied: Sequence[str]) -> Path:
    """The folder of a study whose cells are finished."""
    folder.mkdir(parents=True)
    for cell in cells:
        write_run(folder / CELLS / cell.name, cell)
    index = StudyIndex(title="words", varied=list(varied), cells=[cell.name for cell in cells])
    index.write(folder / INDEX)
    return folder
