"""Describes the free-text answers of a study, and where each of its students began.

    python benchmarks/written_answers.py STUDY [--set gsm8k] [--folder DATA] [--output FILE]

STUDY is the folder of a finished study, such as `instil run gsm8k-smollm2` makes. DATA is a local
copy of its data, if it was made from one. For each cell: the share of answers that mark their
result with `####`, as gold answers do, their median length in characters, and the share that is as
long as the limit allows, in tokens of the study's model; for a distilled student also KL(teacher ||
student) on the gold answers before and after training, in nats per token.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import instil
from instil import Recipe, Run, Study
from instil.evaluation.fidelity import likelihoods
from instil.methods import METHODS
from instil.models.load import outline, quiet_libraries
from instil.pipeline.text import TextSteps
from instil.system import environment
from instil.system.progress import Display


def form(cell: Run, name: str) -> dict[str, Any]:
    """What the answers of a cell to one set look like."""
    results = cell.results
    tokenizer, limit = outline(results.model).tokenizer, results.prompt.max_new_tokens
    assert limit is not None
    answers = [
        line.text or ""
        for line in cell.predictions
        if line.set == name and line.method == results.method
    ]
    ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
    return {
        "marked": statistics.mean("####" in answer for answer in answers),
        "median_characters": statistics.median(map(len, answers)),
        "cut": statistics.mean(len(one) >= limit for one in ids),
    }


def before_training(cell: Run, name: str, folder: str | None) -> float:
    """KL to the teacher of the student that the cell began with."""
    settings = json.loads(json.dumps(cell.results.recipe))
    settings["task"]["folder"] = folder
    settings["dtype"] = cell.results.dtype
    recipe = Recipe.parse(settings)
    with TemporaryDirectory() as work:
        steps = TextSteps.prepare(recipe, store=Path(work), display=Display(quiet=True))
        (rows,) = (rows for one, rows in steps.sets if one.name == name)
        (found,) = likelihoods(
            steps.models,
            rows,
            rows.need_gold(),
            [METHODS["zero_shot"]],
            compare=True,
            batch_size=recipe.evaluation.batch_size,
            advance=lambda rows, tokens: None,
        )
    assert found.fidelity is not None
    return found.fidelity.kl_to_teacher


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--set", default="gsm8k")
    parser.add_argument("--folder")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    quiet_libraries()
    study = instil.load(arguments.study)
    assert isinstance(study, Study)
    cells: dict[str, dict[str, Any]] = {}
    for cell in study.cells:
        found, results = form(cell, arguments.set), cell.results
        (score,) = (one for one in results.methods[0].scores if one.name == arguments.set)
        if score.fidelity and results.training:
            found["kl_before"] = before_training(cell, arguments.set, arguments.folder)
            found["kl_after"] = score.fidelity.kl_to_teacher
        cells[results.name.rpartition("-")[0]] = found
    print("| | marked with #### | median characters | cut | KL before training | after |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, found in cells.items():
        kl = (f"{found[key]:.3f}" if key in found else "–" for key in ("kl_before", "kl_after"))
        print(
            f"| {name} | {found['marked']:.0%} | {found['median_characters']:.0f} | "
            f"{found['cut']:.0%} | {' | '.join(kl)} |"
        )
    if arguments.output:
        kept = {
            "command": "python benchmarks/written_answers.py "
            f"{arguments.study} --set {arguments.set}",
            "set": arguments.set,
            "cells": cells,
            "environment": environment.describe(),
        }
        arguments.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
