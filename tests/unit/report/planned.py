"""Shipped recipes as if they had been run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.unit.report.studies import (
    LABELS,
    build_cell,
    predict,
    with_scores,
    write_study_folder,
)

from instil.methods import METHODS
from instil.recipe.grid import plan, read_recipe
from instil.recipe.shipped import find
from instil.report import read_study
from instil.report.analysis import Analysis, analyse
from instil.results.scores import SingleContext


def planned(folder: Path, name: str, **grid: Any) -> Analysis:
    """A shipped recipe as if it had been run, with these values in its grid."""
    settings = read_recipe(find(name))
    grids = settings["grid"] if isinstance(settings["grid"], list) else [settings["grid"]]
    for one in grids:
        one.update({key: values for key, values in grid.items() if key in one})
    cells = []
    for found in plan(settings).cells:
        recipe, method = found.recipe, METHODS[found.recipe.method]
        task: Any = recipe.task
        lines = [
            line
            for place in (*task.in_domain, *task.out_of_domain)
            for line in predict([n % 3 > 0 for n in range(60)], LABELS, place)
        ]
        made = build_cell(
            recipe.method,
            lines,
            seed=recipe.seed,
            tuning=recipe.tuning.name if method.learns else None,
            k=recipe.demonstrations.k if method.teacher or method.context else 0,
            name=found.name,
            varied=found.varied,
            recipe=recipe.model_dump(mode="json"),
            model=recipe.model,
            task=task.name,
        )
        if recipe.method == "in_context" and recipe.teacher.contexts > 1:
            single = [SingleContext(accuracy=a, calibrated=0.8) for a in (0.5, 0.7)]
            scores = [
                s.model_copy(update={"single_contexts": single}) for s in made.methods[0].scores
            ]
            made = with_scores(made, scores)
        cells.append((made, lines))
    folder = write_study_folder(folder / "s", cells, varied=plan(settings).varied)
    return analyse(read_study([folder]))
