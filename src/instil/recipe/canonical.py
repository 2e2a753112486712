"""The canonical form of a recipe: settings that it does not use have defaults. And its digest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel

from instil.errors import DataFileError
from instil.losses import Objective
from instil.losses.cross_entropy import CrossEntropy
from instil.losses.label_kl import LabelKL
from instil.methods import METHODS, MethodName
from instil.models.loading import Quantization
from instil.models.tuning import LoRA
from instil.recipe.keep import Keep
from instil.recipe.recipe import Recipe, default_names
from instil.recipe.sections import Demonstrations, Evaluation, Student, Teacher, Training
from instil.results.schema import NO_MATTER
from instil.system.environment import ALGORITHM, VERSION
from instil.system.files import digest, sampled_digest
from instil.targets.selection import Selection
from instil.tasks import Task
from instil.tasks.files import Files

SETTINGS = set(Selection.model_fields) - {"at_least"}
"""The teacher's settings that `selection_of` uses."""


def selection_of(teacher: Teacher, objective: Objective) -> Selection:
    """Returns the rule that selects which teacher outcomes are stored per token.

    It follows the recipe, and it always includes the top outcomes that a loss on raw logits
    reads. If the objective reads nothing else, nothing else is stored.

    Tail outcomes are sampled only in this process and at temperature 1. At a higher temperature, the tail holds a
    large share of the mass: a few samples estimate it badly, and many take too much space.
    """
    needed = objective.top_k_needed
    told = teacher.engine is not None or teacher.targets == "logged"
    draws = objective.takes_draws and objective.temperature == 1 and not told
    if needed and (needed >= teacher.top_k or not objective.needs_distribution):
        return Selection(top_k=needed)
    rule = Selection(
        top_k=teacher.top_k,
        min_probability=teacher.min_probability,
        mass=teacher.mass,
        mass_per_draw=teacher.mass_per_draw if draws else 0.0,
    )
    return rule if rule.all_alike else rule.model_copy(update={"at_least": needed or 1})


def settled(teacher: Teacher, objective: Objective) -> Teacher:
    """Returns the teacher with defaults for settings that do not affect its targets.

    So teachers with equal targets compare equal.
    """
    selection, default = selection_of(teacher, objective), type(teacher)()
    needed = objective.top_k_needed
    changes: dict[str, object] = {}
    if needed and selection == Selection(top_k=needed):
        changes = default.model_dump(include=SETTINGS) | {"top_k": needed}
    elif not selection_of(default, objective).mass_per_draw:
        changes = {"mass_per_draw": default.mass_per_draw}
    return teacher.model_copy(update=changes)


def methods_of(recipe: Recipe) -> list[MethodName]:
    """Returns the recipe's method, then its baselines."""
    return list(dict.fromkeys([recipe.method, *recipe.evaluation.baselines]))


def reads_context(recipe: Recipe) -> bool:
    """Whether a method of the recipe reads a context, or learns from a teacher that does."""
    return any(METHODS[name].context or METHODS[name].teacher for name in methods_of(recipe))


def effective(recipe: Recipe) -> Recipe:
    """Returns the recipe with defaults for every setting that its methods do not use."""
    recipe = recipe.model_copy(update={"teacher": settled(recipe.teacher, recipe.objective)})
    method, names = METHODS[recipe.method], methods_of(recipe)
    asks_teacher = any(METHODS[name].teacher for name in names)
    text = recipe.task.answers == "text"
    # teacher.max_new_tokens also limits the answers of the student.
    unread_teacher = Teacher(max_new_tokens=recipe.teacher.max_new_tokens)
    evaluation: dict[str, object] = {"baselines": tuple(names[1:])}
    reset: dict[str, object] = {}
    if method.learns is None:
        evaluation["drift_tokens"] = Evaluation().drift_tokens
        evaluation["general_prompts"] = Evaluation().general_prompts
        reset |= {"tuning": LoRA(), "training": Training()}
        # With a context, the validation rows matter: demonstrations are drawn from the others.
        if not reads_context(recipe):
            evaluation |= {"at_steps": None, "validation_rows": Evaluation().validation_rows}
    if recipe.evaluation.at_steps is None:
        evaluation["validation_rows"] = Evaluation().validation_rows
    reset["evaluation"] = recipe.evaluation.model_copy(update=evaluation)
    if method.learns != "targets" or not recipe.keep.on:
        reset["keep"] = Keep(source="none")
    elif recipe.keep.source != "self":
        reset["keep"] = recipe.keep.model_copy(update={"rows": Keep().rows, "chats": Keep().chats})
    if method.learns != "targets":
        reset["objective"] = CrossEntropy() if text else LabelKL(over="labels")
    if not asks_teacher:
        reset["teacher"] = unread_teacher
        if recipe.quantization is not None:
            reset["quantization"] = Quantization(bits=recipe.quantization.bits)
    if not reads_context(recipe):
        reset |= {"demonstrations": Demonstrations(), "task": _without_context(recipe.task)}
    elif method.learns is None:
        # The number of training rows matters: demonstrations are drawn from the others.
        reset["training"] = Training(rows=recipe.training.rows)
    if recipe.method == "in_context":
        reset["student"] = Student()
    if asks_teacher:
        unread: dict[str, object] = {}
        if method.learns is None:  # no student learns from this teacher
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


def unread_warning(keys: Sequence[str]) -> str:
    """Returns a line that warns about settings that nothing reads."""
    verb, them = ("is", "it") if len(keys) == 1 else ("are", "them")
    return f"{', '.join(keys)} {verb} set, but with the other settings nothing reads {them}"


def unread_settings(recipe: Recipe, used: Recipe) -> list[str]:
    """Returns the keys that are set to other values than their defaults, and that nothing reads.

    In a grid this is usual: zero-shot reads no learning rate. In a single run it may be a mistake.

    Args:
        recipe: All settings.
        used: The recipe that `effective` makes of it.
    """
    usual = default_names({"task": recipe.task})
    unread: list[str] = []
    for section in Recipe.model_fields:
        value, left = getattr(recipe, section), getattr(used, section)
        if value == left or not isinstance(value, BaseModel):
            continue
        if type(value) is not type(left) and getattr(value, "name", "") != usual.get(section):
            unread.append(section)
            continue
        fields = type(value).model_fields
        unread += [
            f"{section}.{key}"
            for key in fields
            if key in value.model_fields_set
            and key not in ("name", "baselines")
            and getattr(value, key) not in (fields[key].default, getattr(left, key, None))
        ]
    return unread


def _without_context(task: Task) -> Task:
    """Returns the task without the settings that only describe a context."""
    if not isinstance(task, Files):
        return task
    return task.model_copy(update=dict.fromkeys(("demos", "k", "instruction", "document")))


def cell_digest(recipe: Recipe) -> str:
    """Returns a short digest of everything that a cell's results depend on.

    It covers the settings that change a result, the data, the files of local models, and the
    version of instil's algorithm.

    Raises:
        DataFileError: a file of a local model cannot be read.
    """
    identity: dict[str, object] = {
        "models": [
            _files(Path(name))
            for name in (recipe.model, recipe.teacher.model)
            if name and Path(name).is_dir()
        ],
        "recipe": recipe.model_dump(mode="json", exclude=NO_MATTER),
        "task": recipe.task.digest(),
        "keep": recipe.keep.digest(),
        "version": [VERSION, ALGORITHM],
    }
    measured = recipe.evaluation
    if measured.measured_by() != [*measured.metrics]:  # a metric that reads a file
        identity["metrics"] = measured.measured_by()
    if isinstance(measured.rules, Path):
        identity["rules"] = [(rule.name, rule.text) for rule in measured.ruled()]
    return digest(identity)[:8]


def _files(folder: Path) -> list[tuple[str, str]]:
    """Returns the name and a digest of each file in a folder."""
    try:
        states = [(path, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
        return [
            (path.name, _content(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
            for path, state in states
        ]
    except OSError as error:
        raise DataFileError(
            f"the model {folder} cannot be read", got=f"{error.filename}: {error.strerror}"
        ) from None


@lru_cache(maxsize=1024)
def _content(path: Path, size: int, *changed: int) -> str:
    """The digest of a file in this state; cached, because a grid needs it for every cell."""
    return sampled_digest(path)
