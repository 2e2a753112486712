"""A cell of a study, written down: what every kind of task tells of itself, and the files that it leaves."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instil.methods import METHODS
from instil.recipe.recipe import Recipe
from instil.results.cell import CELL, PREDICTIONS, Cell, CellPrediction
from instil.results.schema import PhaseCost
from instil.system import environment
from instil.system.costs import Recorder
from instil.system.environment import VERSION
from instil.system.files import write_lines

ENVIRONMENT = "environment.json"
SCRATCH = "scratch"  # of training; nothing in it is kept


def describe(
    recipe: Recipe, *, name: str, varied: dict[str, Any], recorder: Recorder, **scored: Any
) -> Cell:
    """The cell of a recipe.

    Args:
        recipe: Its settings.
        name: Of the cell.
        varied: What the grid varies, with this cell's values.
        recorder: Knows what the phases cost.
        scored: All other fields of `Cell`.
    """
    method = METHODS[recipe.method]
    return Cell(
        instil_version=VERSION,
        name=name,
        varied=varied,
        recipe=recipe.model_dump(mode="json"),
        model=recipe.model,
        teacher_model=recipe.teacher.model if method.teacher else None,
        method=recipe.method,
        tuning=recipe.tuning.name if method.learns else None,
        k=recipe.demonstrations.k if method.teacher or method.context else 0,
        seed=recipe.seed,
        phases={name: PhaseCost(**asdict(cost)) for name, cost in recorder.costs().items()},
        **scored,
    )


def write(folder: Path, cell: Cell, predictions: Iterable[CellPrediction]) -> None:
    """Writes `predictions.jsonl`, `environment.json` and, last, `cell.json`, whose being there makes a cell done."""
    write_lines(folder / PREDICTIONS, predictions)
    described = json.dumps(environment.describe(), indent=1) + "\n"
    (folder / ENVIRONMENT).write_text(described, encoding="utf-8")
    cell.write(folder / CELL)
