"""The steps of every cell: prepare, teach, train, evaluate, record.

Each step writes a file and is skipped if the file exists. So an interrupted cell resumes where it
stopped. All inputs are checked before a folder is created.
"""

from __future__ import annotations

import shutil
from os.path import isdir
from pathlib import Path
from typing import Any

from instil.errors import ConfigError
from instil.methods import METHODS
from instil.pipeline import record
from instil.pipeline.folder import CHECKPOINTS, SCRATCH, Staging, check_place, resolved
from instil.pipeline.given import Given
from instil.pipeline.steps import Steps
from instil.recipe.canonical import effective, unread_settings, unread_warning
from instil.recipe.recipe import Recipe
from instil.results.schema import RESULTS, Results
from instil.system import processes
from instil.system.progress import Display
from instil.tasks.files import Files
from instil.tasks.kept_texts import read_kept
from instil.teacher.lessons import Lessons


def run(
    recipe: Recipe,
    output: Path,
    *,
    given: Given | None = None,
    overwrite: bool = False,
    display: Display,
) -> Path:
    """Runs one cell and writes its folder, with a report.

    Args:
        recipe: All settings.
        output: Folder of the run. It has another name until the run is complete.
        given: Rows and context. They replace the files that the task `files` names.
        overwrite: Replace an existing run.
        display: Shows progress.

    Returns:
        The folder.

    Raises:
        InstilError: the input, the models or the machine do not allow the run. If work is kept,
            the message says where.
        KeyboardInterrupt: Ctrl-C; the same call resumes the run.
    """
    from instil.report import write_report

    if unread := unread_settings(recipe, effective(recipe)):
        display.warn(unread_warning(unread))
    staging = Staging(output, overwrite=overwrite, reads=_places(recipe))
    steps = _prepare(recipe, staging.store, display, given)
    with staging.open(steps.identity, needed_bytes=steps.needed_bytes) as folder:
        _finish(steps, folder)
        processes.main_does(lambda: write_report(folder))
        staging.finish()
    return output


def run_cell(recipe: Recipe, folder: Path, *, store: Path, display: Display) -> Results:
    """Runs one cell of a study. It resumes from the files of an interrupted call.

    Args:
        recipe: All settings.
        folder: Folder to write to. It is created if it does not exist.
        store: Folder with the predictions of teachers, shared by all cells of a study.
        display: Shows progress.

    Raises:
        InstilError: the task, the models or the settings do not allow the run.
    """
    return _finish(_prepare(recipe, store, display), folder)


def teach(recipe: Recipe, *, store: Path, display: Display, given: Given | None = None) -> Lessons:
    """Computes and stores the targets of a cell with free-text answers, without training.

    Args:
        recipe: All settings.
        store: Folder of target stores, used if the recipe names none.
        display: Shows progress.
        given: Rows and context. They replace the files that the task `files` names.

    Raises:
        ConfigError: the answers are labels, or the method does not train.
    """
    if recipe.task.answers == "text":
        from instil.pipeline.text import TextSteps

        _check_store(recipe)
        steps = TextSteps.prepare(recipe, store=store, display=display, given=given)
        try:
            taught = steps.teach()
        finally:
            steps.close()
        if taught is not None:
            return taught.lessons.lessons
    raise ConfigError(
        "this recipe has no targets to compute",
        got=f"task {recipe.task.name}, method {recipe.method}",
        allowed="a task with free-text answers, and a method that trains",
    )


def _prepare(
    recipe: Recipe, store: Path, display: Display, given: Given | None = None
) -> Steps[Any, Any]:
    """Reads and checks all inputs of a cell."""
    _check_store(recipe)
    if isinstance(recipe.keep.source, Path) and METHODS[recipe.method].learns == "targets":
        read_kept(recipe.keep.source)
    if recipe.task.answers == "labels":
        from instil.pipeline.labels import LabelSteps

        return LabelSteps.prepare(recipe, store=store, display=display)
    from instil.pipeline.text import TextSteps

    return TextSteps.prepare(recipe, store=store, display=display, given=given)


def _finish(steps: Steps[Any, Any], folder: Path) -> Results:
    """Runs all steps and writes the folder. If there are several processes, the main one writes.

    `results.json` is written last. If an interrupted call has written it, all steps are done.
    """
    if not processes.main_does((folder / RESULTS).exists):
        try:
            _work(steps, folder)
        finally:
            steps.close()

    def clear() -> Results:
        for name in (SCRATCH, CHECKPOINTS):
            shutil.rmtree(folder / name, ignore_errors=True)
        return Results.read(folder / RESULTS)

    return processes.main_does(clear)


def _work(steps: Steps[Any, Any], folder: Path) -> None:
    """Runs all steps and writes their results."""
    scratch = folder / SCRATCH
    processes.main_does(lambda: scratch.mkdir(parents=True, exist_ok=True))
    steps.recorder.keep_at(scratch / "phases.json")
    taught = steps.teach()
    trained = steps.train(taught, folder) if steps.method.learns else None
    judged = steps.judge(taught, trained)
    steps.recorder.add_other_processes()
    results = steps.results(judged, trained)

    processes.main_does(
        lambda: record.write(
            folder,
            results,
            judged.predictions,
            example=steps.example(),
            context=steps.rows.context,
            context_text=steps.context_text,
            rows=judged.rows,
            dropped=steps.left_out,
        )
    )


def _check_store(recipe: Recipe) -> None:
    """Refuses a folder for target stores that cannot be created, before a model is loaded."""
    if (store := recipe.teacher.store) is not None:
        check_place(resolved(store), store, there=True)


def _places(recipe: Recipe) -> list[Path]:
    """Returns the files and folders that a recipe names."""
    task, teacher = recipe.task, recipe.teacher
    models = (recipe.model, teacher.model)
    named = [Path(m) for m in models if m and isdir(m)]  # noqa: PTH112 - takes any text
    if teacher.store:
        named.append(teacher.store)
    if isinstance(recipe.keep.source, Path):
        named.append(recipe.keep.source)
    if isinstance(task, Files):
        sets = task.eval.values() if isinstance(task.eval, dict) else [task.eval]
        files = [task.inputs, task.demos, task.instruction, task.document, *sets]
        named += [task.place(file) for file in files if file]
    return named
