"""Runs in a study's report: what a run measured of its three methods, told as three cells whose answers are written.

A grid of a recipe that takes its context and rows from files has runs for cells. Told like this, they are compared by
the same tables, figures and tests as all others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from instil.errors import DataFormatError
from instil.methods import STUDY_METHODS, MethodName, RunMethodName
from instil.results.cell import Cell, CellPrediction, CellTraining, Closeness, SetScore
from instil.results.schema import RESULTS, Prediction, Proportion, Results
from instil.system.files import read_lines

TASK, ROWS = "own rows", "evaluation rows"


def is_run(folder: Path) -> bool:
    """Whether a folder is a finished run."""
    return (folder / RESULTS).is_file()


def run_cells(folder: Path, name: str) -> list[Cell]:
    """A run's methods, without those that have no accuracy.

    The phases are those of the whole run and stand with the student: evaluation in them is that of all three.

    Args:
        folder: A finished run.
        name: What the study calls it.

    Raises:
        DataFormatError: its settings cannot be read.
    """
    results, recipe = Results.read(folder / RESULTS), _recipe(folder)
    cells = []
    for method, told in STUDY_METHODS.items():
        accuracy = results.methods[method].accuracy
        if accuracy is None:
            continue
        student = method == "distilled"
        weights = (folder / "adapter").glob("*.safetensors") if student else ()
        teacher = results.methods["in_context"].accuracy if student else None
        cells.append(
            Cell(
                instil_version=results.instil_version,
                name=f"{name}/{told}",
                varied={},
                recipe=recipe,
                model=results.model,
                teacher_model=None if told == "zero_shot" else results.teacher_model,
                dtype=results.dtype,
                task=TASK,
                labels=[],
                method=told,
                tuning=recipe.get("tuning", {}).get("name") if student else None,
                k=0 if told == "zero_shot" else results.context.get("k") or 0,
                seed=results.seed,
                prompt_tokens_mean=results.methods[method].prompt_tokens_mean,
                scores=[_score(accuracy, _closeness(results, method))],
                teacher=[_score(teacher, None)] if teacher else [],
                training=_training(results) if student else None,
                phases=results.phases if student else {},
                reused=[],
                shipped_bytes=sum(path.stat().st_size for path in weights),
                drift=results.drift.kl_to_base if student else None,
            )
        )
    return cells


def run_predictions(path: Path, method: MethodName) -> list[CellPrediction]:
    """What one of a run's methods answered, from its `predictions.jsonl`."""
    return [
        CellPrediction(
            set=ROWS,
            row=line.row,
            input=line.input,
            expected=line.expected or "",
            predicted=(line.expected or "") if line.correct else line.output,
            probabilities={},
            written=line.output,
        )
        for line in read_lines(Prediction, path)
        if STUDY_METHODS[line.method] == method
    ]


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        recipe: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["recipe"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataFormatError(f"{path} holds no settings of a run", got=str(error)) from None
    return recipe


def _score(accuracy: Proportion, closeness: Closeness | None) -> SetScore:
    return SetScore(
        name=ROWS,
        domain="in",
        accuracy=accuracy,
        chance=0,
        majority=0,
        calibration_error=None,
        verbalizer_mass=None,
        confusion={},
        fidelity=closeness,
        single_contexts=[],
    )


def _closeness(results: Results, method: RunMethodName) -> Closeness | None:
    if method == "in_context":
        return None
    fidelity = results.fidelity
    return Closeness(
        kl_to_teacher=getattr(fidelity.kl_to_teacher, method),
        agreement=getattr(fidelity.top1_agreement, method),
    )


def _training(results: Results) -> CellTraining:
    training = results.training
    return CellTraining(
        rows=training.rows,
        steps=training.steps,
        trainable_parameters=training.trainable_parameters,
        trainable_share=training.trainable_share,
        loss=training.loss,
    )
