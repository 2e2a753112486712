"""Benchmarks of lm-evaluation-harness (Gao et al. 2024), of a student and of its base."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from instil.errors import ConfigError, DataFileError
from instil.pipeline.record import ADAPTER
from instil.pipeline.student import Student
from instil.results.scores import HarnessScore
from instil.system.progress import Display


def harness(
    folder: Path,
    tasks: Sequence[str],
    *,
    include: Path | None,
    limit: int | None,
    display: Display,
) -> list[HarnessScore]:
    """Runs tasks of the harness with the adapter off, and on.

    Args:
        folder: Folder of the run.
        tasks: Names of tasks.
        include: Folder with further tasks, as YAML files of the harness.
        limit: Most examples of a task; None: all.
        display: Shows progress.

    Returns:
        A score for each metric of each task.

    Raises:
        ConfigError: the harness is not installed, does not know a task, or cannot load its data.
        DataFileError: the run has no adapter.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            "--lm-eval needs the library lm_eval", mend="pip install 'instil[lm-eval]'"
        ) from error
    if not (folder / ADAPTER).is_dir():
        raise DataFileError(f"{folder} has no adapter, so there is no base to compare with")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    known = TaskManager(include_path=include and str(include), verbosity="ERROR")
    unknown = [name for name in tasks if name not in known.all_tasks]
    if unknown:
        raise ConfigError(
            f"lm_eval knows no task {unknown[0]!r}",
            allowed=f"one of its {len(known.all_tasks):,} tasks, or of --lm-eval-path FOLDER",
            mend="list them with: lm-eval ls tasks",
        )
    student = Student.load(folder)
    network: Any = student.model.network
    found = []
    for who in ("base", "student"):
        display.note(f"lm_eval asks the {who}: {', '.join(tasks)}")
        model = HFLM(
            pretrained=network,
            tokenizer=student.model.tokenizer,
            batch_size=student.recipe.evaluation.batch_size,
        )
        with network.disable_adapter() if who == "base" else nullcontext():
            try:
                made = simple_evaluate(
                    model,
                    tasks=[*tasks],
                    task_manager=known,
                    limit=limit,
                    log_samples=False,
                    bootstrap_iters=1000,
                )
            except (OSError, ValueError, ConnectionError) as error:
                raise ConfigError(
                    "lm_eval cannot run these tasks",
                    got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                    mend="check that their data sets can be loaded",
                ) from error
        found.append(made)
    return [*_scores(*found)]


def _scores(base: dict[str, Any], student: dict[str, Any]) -> list[HarnessScore]:
    made = []
    for task, values in base["results"].items():
        counted = base["n-samples"].get(task)
        for key, value in values.items():
            name, _, filtered = key.partition(",")
            if name.endswith("_stderr") or not filtered or not isinstance(value, int | float):
                continue
            metric = name if filtered == "none" else f"{name}, {filtered}"
            error = f"{name}_stderr,{filtered}"
            made.append(
                HarnessScore(
                    task=task,
                    metric=metric,
                    base=value,
                    base_error=_number(values.get(error)),
                    student=student["results"][task][key],
                    student_error=_number(student["results"][task].get(error)),
                    examples=counted and counted["effective"],
                )
            )
    return made


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
