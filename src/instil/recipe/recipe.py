"""The recipe: every setting of a run, checked as a whole.

A recipe knows no unknown keys and reports all its problems at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from instil.errors import ConfigError
from instil.losses import Objective
from instil.losses.forward_kl import ForwardKL
from instil.losses.label_kl import LabelKL
from instil.methods import MethodName
from instil.models.tuning import LoRA, Tuning
from instil.recipe.problems import problem, unread
from instil.recipe.sections import (
    ContextFiles,
    Data,
    Demonstrations,
    Evaluation,
    Prompt,
    Section,
    Student,
    Teacher,
    Training,
)
from instil.tasks import TASKS, Task
from instil.tasks.classification import Classification
from instil.tasks.free_text import FreeText


class Recipe(Section):
    """All settings of one run. Every section has defaults that give a good adapter."""

    model: str
    task: Task | None = Field(None, description="null: the context and the rows come from files")
    method: MethodName = Field("distillation", description="of a task")
    context: ContextFiles = ContextFiles()
    data: Data = Data()
    demonstrations: Demonstrations = Demonstrations()
    prompt: Prompt = Prompt()
    teacher: Teacher = Teacher()
    student: Student = Student()
    objective: Objective = Field(
        ForwardKL(), description="a loss, or a list of losses: their weighted sum"
    )
    tuning: Tuning = LoRA()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _name_defaults(cls, settings: object) -> object:
        """A section that is chosen by name has one if none is given: `tuning: {r: 4}` is LoRA."""
        if not isinstance(settings, Mapping):
            return settings
        named = {
            section: {"name": name, **value}
            for section, name in default_names(settings).items()
            if isinstance(value := settings.get(section, {}), Mapping)
        }
        return {**settings, **named}

    @model_validator(mode="after")
    def _task_or_files(self) -> Self:
        """Refuses settings that the kind of run would not read."""
        if found := unread(self, self.task):
            raise ValueError("; ".join(found))
        if self.task is None:
            if not isinstance(self.tuning, LoRA):
                raise ValueError("tuning: without a task only lora, whose base stays at hand")
        elif isinstance(self.task, FreeText):
            self._check_free_text(self.task)
        elif not isinstance(self.objective, LabelKL):
            raise ValueError(
                f"objective: {self.objective.name} is not for a classification task; use label_kl"
            )
        elif self.objective.over == "vocabulary" and (
            self.teacher.contexts > 1 or self.teacher.calibration != "none"
        ):
            raise ValueError(
                "teacher.contexts and teacher.calibration work on label distributions: "
                "they need objective.over: labels_and_mass or labels"
            )
        elif self.teacher.calibration == "contextual" and self.demonstrations.draw == "per_query":
            raise ValueError(
                "teacher.calibration: contextual divides by what the same demonstrations say of an empty input, "
                "and demonstrations.draw: per_query draws others for each; use fixed, or batch"
            )
        if isinstance(self.task, Classification) and self.task.unlabelled is not None:
            self._check_unlabelled()
        if self.task is None and isinstance(self.objective, LabelKL):
            raise ValueError("objective: label_kl needs a task")
        return self

    def _check_unlabelled(self) -> None:
        """Refuses what learns labels that are not known."""
        if self.method not in ("zero_shot", "in_context", "distillation"):
            raise ValueError(
                f"task.unlabelled: {self.method} learns labels; leave it out, or use distillation"
            )
        if (
            self.method == "distillation"
            and isinstance(self.objective, LabelKL)
            and self.objective.alpha < 1
        ):
            raise ValueError(
                f"objective.alpha: {self.objective.alpha:g} mixes labels in, and task.unlabelled has none; use 1"
            )

    def _check_free_text(self, task: FreeText) -> None:
        """Refuses what needs labels, steps that are never reached, and a draw of demonstrations that are not drawn."""
        at_steps, last = self.evaluation.at_steps, self.training.max_steps
        if isinstance(at_steps, tuple) and last is not None and max(at_steps) > last:
            raise ValueError(
                f"evaluation.at_steps: training ends after step {last} (got {max(at_steps)}); "
                "leave it out, or raise training.max_steps"
            )
        if isinstance(self.objective, LabelKL):
            raise ValueError(
                "objective: label_kl needs labels, and the task's answers are free text; "
                "use forward_kl or another loss of tokens"
            )
        if self.method == "vanilla_fine_tuning":
            raise ValueError(
                "method: vanilla_fine_tuning trains a head of labels, and the task's answers are free text; "
                "use pattern_fine_tuning"
            )
        if not isinstance(self.tuning, LoRA):
            raise ValueError(
                "tuning: with answers in free text only lora, whose base stays at hand"
            )
        if self.student.keep_layers is not None:
            raise ValueError(
                "student.keep_layers: not read with a task whose answers are free text"
            )
        if task.exemplar_count is None:
            return
        if self.demonstrations.k > task.exemplar_count:
            raise ValueError(
                f"demonstrations.k: the task brings {task.exemplar_count} demonstrations (got {self.demonstrations.k})"
            )
        if self.demonstrations.draw == "per_query":
            raise ValueError(
                "demonstrations.draw: the task brings its demonstrations, nothing is drawn (got 'per_query'); "
                "use fixed"
            )

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Recipe:
        """Checks settings and fills in the defaults.

        Args:
            settings: Nested mappings, as in the YAML file.

        Raises:
            ConfigError: names every problem, with the nearest known key for an unknown one.
        """
        recipe, problems = cls.check(settings)
        if recipe is None:
            raise ConfigError.listing(problems)
        return recipe

    @classmethod
    def check(
        cls, settings: Mapping[str, Any], *, file: type[Recipe] | None = None
    ) -> tuple[Recipe | None, list[str]]:
        """The recipe, or every problem of it in a clause each.

        Args:
            settings: Nested mappings.
            file: What the file that they are from may hold, beside a recipe.
        """
        try:
            return cls.model_validate(settings), []
        except ValidationError as error:
            return None, [problem(file or cls, settings, e) for e in error.errors()]


def default_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """Section of a recipe -> the name that it has if none is given."""
    labels = _asks_for_labels(settings.get("task"))
    return {"objective": "label_kl" if labels else "forward_kl", "tuning": "lora"}


def _asks_for_labels(task: object) -> bool:
    """Whether there is a task, checked already or not, and its answers are labels."""
    name = task.get("name") if isinstance(task, Mapping) else getattr(task, "name", None)
    # A name that nobody knows is a problem of its own.
    return bool(task) and (name not in TASKS or TASKS[name].answers == "labels")
