"""A recipe with what it does not read set to defaults, and its digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from instil.losses import Objective
    from instil.recipe.sections import Teacher
from pathlib import Path

from instil.losses import Objective
from instil.losses.cross_entropy import CrossEntropy
from instil.losses.label_kl import LabelKL
from instil.methods import METHODS
from instil.models.tuning import LoRA
from instil.recipe.recipe import Recipe
from instil.recipe.sections import Demonstrations, Evaluation, Student, Teacher, Training
from instil.results.cell import NO_MATTER
from instil.system.environment import VERSION
from instil.system.files import digest
from instil.targets.selection import Selection
from instil.tasks.free_text import FreeText
from instil.tasks.source import file_digest

SETTINGS = set(Selection.model_fields) - {"at_least"}
"""Settings of a teacher that `selection_of` reads."""


def selection_of(teacher: Teacher, objective: Objective) -> Selection:
    """What a token keeps: as the recipe says, and as many as a loss of raw logits reads; where nothing reads more, no more.

    Nothing is drawn at another temperature than 1. At a higher one the tail has a large share of all: few draws say little of
    it, and many take the space that was to be saved.
    """
    read = objective.top_k_needed
    draws = objective.takes_draws and objective.temperature == 1
    if read and (read >= teacher.top_k or not objective.needs_distribution):
        return Selection(top_k=read)
    rule = Selection(
        top_k=teacher.top_k,
        min_probability=teacher.min_probability,
        mass=teacher.mass,
        mass_per_draw=teacher.mass_per_draw if draws else 0.0,
    )
    return rule if rule.all_alike else rule.model_copy(update={"at_least": read or 1})


def settled(teacher: Teacher, objective: Objective) -> Teacher:
    """The same teacher; what decides nothing of what is kept is set to its default, so that equal targets have equal settings."""
    kept, plain = selection_of(teacher, objective), type(teacher)()
    read = objective.top_k_needed
    changes: dict[str, object] = {}
    if read and kept == Selection(top_k=read):
        changes = plain.model_dump(include=SETTINGS) | {"top_k": read}
    elif not selection_of(plain, objective).mass_per_draw:
        changes = {"mass_per_draw": plain.mass_per_draw}
    return teacher.model_copy(update=changes)


def effective(recipe: Recipe) -> Recipe:
    """The recipe with every section that its method does not read set to its default."""
    recipe = recipe.model_copy(update={"teacher": settled(recipe.teacher, recipe.objective)})
    if recipe.task is None:
        return recipe
    method = METHODS[recipe.method]
    text = isinstance(recipe.task, FreeText)
    # How long an answer may be is set with the teacher and holds for every model.
    unread_teacher = Teacher(max_new_tokens=recipe.teacher.max_new_tokens)
    reads_context = method.context or method.teacher
    reset: dict[str, object] = {}
    if method.learns is None:
        reset |= {"tuning": LoRA(), "training": Training()}
        if not reads_context:  # demonstrations are drawn from what validation leaves
            judged = {"at_steps": None, "validation_rows": Evaluation().validation_rows}
            reset["evaluation"] = recipe.evaluation.model_copy(update=judged)
    if method.learns != "targets":
        reset["objective"] = CrossEntropy() if text else LabelKL(over="labels")
    if not method.teacher:
        reset["teacher"] = unread_teacher
    if not reads_context:
        reset["demonstrations"] = Demonstrations()
    elif method.learns is None:  # demonstrations are drawn from what training leaves
        reset["training"] = Training(rows=recipe.training.rows)
    if recipe.method == "in_context":
        reset["student"] = Student()
    if method.teacher:
        unread: dict[str, object] = {}
        if method.learns is None:  # what it writes is judged, and nothing learns from it
            unread = unread_teacher.model_dump(
                include={"completions", "samples", "sampling_temperature", *SETTINGS}
            )
        elif not recipe.objective.needs_targets or (
            isinstance(recipe.objective, LabelKL) and recipe.objective.over != "vocabulary"
        ):
            unread = unread_teacher.model_dump(include=SETTINGS)
        if recipe.demonstrations.k == 0:
            unread["contexts"] = 1
            pool = recipe.demonstrations.pool
            reset["demonstrations"] = Demonstrations(k=0, pool=pool)
        reset["teacher"] = recipe.teacher.model_copy(update=unread)
    return recipe.model_copy(update=reset)


def cell_digest(recipe: Recipe) -> str:
    """Changes with any setting that changes a number, and with the data and local models."""
    named = [
        recipe.context.demos,
        recipe.context.instruction,
        recipe.context.document,
        recipe.data.inputs,
        recipe.data.eval,
    ]
    identity = {
        "files": [file_digest(path) for path in named if path],
        "models": [
            [path.name, path.stat().st_size, path.stat().st_mtime_ns]
            for name in (recipe.model, recipe.teacher.model)
            if name and Path(name).is_dir()
            for path in sorted(Path(name).iterdir())
        ],
        "recipe": recipe.model_dump(mode="json", exclude=NO_MATTER),
        "task": recipe.task.digest() if recipe.task else None,
        "version": VERSION,
    }
    return digest(identity)[:8]
