"""Says of a study whose answers are written what its report does not: what they look like, and where each student began.

    python benchmarks/written_answers.py STUDY [--set gsm8k] [--folder DATA] [--output FILE]

STUDY is the folder of a finished study, such as `instil run gsm8k-smollm2` makes; DATA a local copy of its data, if it was made from one.
A line a cell: the share of answers that mark their result with `####`, as gold answers do, the median length in characters, the
share that is as long as the limit allows, in tokens of the study's model; of a distilled student KL(teacher || student) on the gold answers
before and after training, nats a token.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from instil.models.load import outline, quiet_libraries
from instil.pipeline.text import WritingCell
from instil.recipe.recipe import Recipe
from instil.report import Study, read_study
from instil.results.cell import Cell
from instil.system import environment
from instil.system.progress import Display


def form(study: Study, cell: Cell, name: str) -> dict[str, Any]:
    """What a cell's answers to one set look like."""
    tokenizer, limit = outline(cell.model).tokenizer, cell.recipe["teacher"]["max_new_tokens"]
    answers = [line.written or "" for line in study.predictions(cell) if line.set == name]
    ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
    return {
        "marked": statistics.mean("####" in answer for answer in answers),
        "median_characters": statistics.median(map(len, answers)),
        "cut": statistics.mean(len(one) >= limit for one in ids),
    }


def before_training(cell: Cell, name: str, folder: str | None) -> float:
    """KL to the teacher of the student that the cell began with."""
    settings = json.loads(json.dumps(cell.recipe))
    settings["task"]["folder"] = folder
    settings["dtype"] = cell.dtype
    with TemporaryDirectory() as work:
        prepared = WritingCell.prepare(Recipe.parse(settings), Path(work), Display(quiet=True))
        (rows,) = (rows for one, rows in prepared.sets if one.name == name)
        fidelity = prepared.gold_score(rows).fidelity
    assert fidelity is not None
    return fidelity.kl_to_teacher


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
    study = read_study([arguments.study])
    told: dict[str, dict[str, Any]] = {}
    for cell in study.cells:
        found = form(study, cell, arguments.set)
        (score,) = (score for score in cell.scores if score.name == arguments.set)
        if score.fidelity:
            found["kl_before"] = before_training(cell, arguments.set, arguments.folder)
            found["kl_after"] = score.fidelity.kl_to_teacher
        told[cell.name.rpartition("-")[0]] = found
    print("| | marked with #### | median characters | cut | KL before training | after |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, found in told.items():
        kl = (f"{found[key]:.3f}" if key in found else "–" for key in ("kl_before", "kl_after"))
        print(
            f"| {name} | {found['marked']:.0%} | {found['median_characters']:.0f} | "
            f"{found['cut']:.0%} | {' | '.join(kl)} |"
        )
    if arguments.output:
        kept = {
            "command": f"python benchmarks/written_answers.py {arguments.study} --set {arguments.set}",
            "set": arguments.set,
            "cells": told,
            "environment": environment.describe(),
        }
        arguments.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
