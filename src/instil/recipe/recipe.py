"""The recipe: all settings of a run, checked together.

A recipe refuses unknown keys and reports all its problems at once.
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
from instil.losses.divergence import Divergence
from instil.losses.forward_kl import ForwardKL
from instil.losses.label_kl import LabelKL
from instil.losses.reverse_kl import ReverseKL
from instil.losses.weighted_sum import WeightedSum
from instil.methods import METHODS, MethodName
from instil.models.loading import Loading, Quantization
from instil.models.tuning import LoRA, Tuning
from instil.recipe.keep import Keep
from instil.recipe.problems import problem, unread
from instil.recipe.sections import (
    Demonstrations,
    Engine,
    Evaluation,
    KlShare,
    Prompt,
    Section,
    Student,
    Teacher,
    Training,
)
from instil.system.settings import MOST
from instil.tasks import TASKS, Task
from instil.tasks.classification import Classification
from instil.tasks.files import Files
from instil.tasks.free_text import FreeText, QuestionTask


class Recipe(Section):
    """All settings of one run. Every section has defaults that give a good adapter."""

    model: str = Field(
        description="Model of the student: hub id (OWNER/NAME, or OWNER/NAME@REVISION for a branch, "
        "tag or commit), local folder, or `bundled:NAME`."
    )
    task: Task = Field(
        Files(),
        description="Questions, gold answers, and the rule that says which answers are right.",
    )
    method: MethodName = Field(
        "distillation", description="How answers are obtained: with training or without."
    )
    demonstrations: Demonstrations = Demonstrations()
    prompt: Prompt = Prompt()
    teacher: Teacher = Teacher()
    student: Student = Student()
    objective: Objective = Field(
        ForwardKL(), description="A loss, or a list of losses, which are added with their weights."
    )
    tuning: Tuning = LoRA()
    training: Training = Training()
    keep: Keep = Keep()
    evaluation: Evaluation = Evaluation()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of the weights. auto: bfloat16 if the machine reports that it "
        "multiplies it fast, else float32.",
    )
    quantization: Quantization | None = Field(
        None,
        description="Weights in few bits, with the adapter on them (QLoRA): `{bits: 4}` or `{bits: "
        "8}`. Needs `pip install 'instil[quant]'`. null: weights in dtype.",
    )
    device_map: Literal["auto"] | None = Field(
        None,
        description="auto: the layers are spread over all accelerators of this machine, because one "
        "is too small. null: the model is on one device.",
    )
    attn_implementation: str | None = Field(
        None,
        description="Attention by transformers' name, such as `flash_attention_2` or `eager`, if it "
        "is installed. null: scaled dot product attention, in packed rows where the model can.",
    )
    seed: int = Field(0, ge=0, le=MOST, description="Seed for all randomness.")

    @property
    def loading(self) -> Loading:
        """How the weights are loaded."""
        return Loading(
            quantization=self.quantization,
            device_map=self.device_map,
            attn_implementation=self.attn_implementation,
        )

    @model_validator(mode="before")
    @classmethod
    def _name_defaults(cls, settings: object) -> object:
        """Adds the default name to a section without a name: `tuning: {r: 4}` means LoRA."""
        if not isinstance(settings, Mapping):
            return settings
        named = {
            section: {"name": name, **value}
            for section, name in default_names(settings).items()
            if isinstance(value := settings.get(section, {}), Mapping)
        }
        return {**settings, **named}

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        """Refuses settings that have no effect with this task, or that exclude each other."""
        if found := unread(self, self.task):
            raise ValueError("; ".join(found))
        if self.quantization is not None:
            self._check_quantised(self.quantization)
        if isinstance(self.task, FreeText):
            self._check_text(self.task)
        elif not isinstance(self.objective, LabelKL):
            raise ValueError(
                f"objective: {self.objective.name} cannot be used with a classification task; "
                "use label_kl"
            )
        elif self.objective.over == "vocabulary" and (
            self.teacher.contexts > 1 or self.teacher.calibration != "none"
        ):
            raise ValueError(
                "teacher.contexts and teacher.calibration change the distribution over labels, so "
                "they need objective.over: labels_and_mass or labels"
            )
        elif self.teacher.calibration == "contextual" and self.demonstrations.draw == "per_query":
            raise ValueError(
                "teacher.calibration: contextual needs the same demonstrations for all queries, "
                "and demonstrations.draw: per_query draws new ones for each query; use "
                "demonstrations.draw: fixed, or teacher.calibration: batch"
            )
        if isinstance(self.task, Classification) and self.task.unlabelled is not None:
            self._check_unlabelled()
        return self

    def _check_unlabelled(self) -> None:
        """Refuses settings that need labels if the training rows have none."""
        if self.method not in ("zero_shot", "in_context", "distillation"):
            raise ValueError(
                f"task.unlabelled: {self.method} needs labelled training rows; leave out "
                "task.unlabelled, or use method: distillation"
            )
        if (
            self.method == "distillation"
            and isinstance(self.objective, LabelKL)
            and self.objective.alpha < 1
        ):
            raise ValueError(
                f"objective.alpha: {self.objective.alpha:g} also learns from labels, and the "
                "rows of task.unlabelled have none; use 1"
            )

    def _check_text(self, task: FreeText) -> None:
        """Refuses settings that need labels, unreachable steps, and wrong demonstrations."""
        at_steps, last = self.evaluation.at_steps, self.training.max_steps
        if isinstance(at_steps, tuple) and last is not None and max(at_steps) > last:
            raise ValueError(
                f"evaluation.at_steps: training ends after step {last} (got {max(at_steps)}); "
                "leave out this step, or raise training.max_steps"
            )
        if at_steps is not None and self.training.until is not None:
            raise ValueError(
                "evaluation.at_steps and training.until cannot both be set: each selects the best "
                "weights in its own way"
            )
        gold = self.teacher.completions == "gold" or METHODS[self.method].learns == "labels"
        if self.training.make_inputs and gold:
            raise ValueError(
                "training.make_inputs: inputs that the teacher writes have no gold outputs "
                f"(got method {self.method}, teacher.completions {self.teacher.completions}); use "
                "method: distillation and teacher.completions: teacher"
            )
        if isinstance(self.training.until, KlShare) and (
            METHODS[self.method].learns == "labels" or not isinstance(self.objective, Divergence)
        ):
            raise ValueError(
                "training.until: kl_share needs a loss that compares the student's distribution with "
                f"the teacher's (got method {self.method}, objective {self.objective.name}); use "
                "plateau, or objective: forward_kl"
            )
        if self.teacher.engine is not None:
            self._check_told("teacher.engine")
        if self.teacher.targets == "logged":
            self._check_logged()
        if isinstance(self.objective, LabelKL):
            raise ValueError(
                "objective: label_kl needs labels, and the task's answers are free text; "
                "use forward_kl or another loss of tokens"
            )
        if self.method == "vanilla_fine_tuning":
            raise ValueError(
                "method: vanilla_fine_tuning trains a classification head, and the task's answers "
                "are free text; use pattern_fine_tuning"
            )
        if not isinstance(self.tuning, LoRA):
            raise ValueError(
                f"tuning: {self.tuning.name} cannot be used with free-text answers; use lora, "
                "which leaves the base model unchanged"
            )
        if not isinstance(task, QuestionTask) or task.exemplar_count is None:
            return
        if self.demonstrations.k > task.exemplar_count:
            raise ValueError(
                f"demonstrations.k: the task has only {task.exemplar_count} demonstrations "
                f"(got {self.demonstrations.k})"
            )
        if self.demonstrations.draw == "per_query":
            raise ValueError(
                "demonstrations.draw: the task has fixed demonstrations, so none are drawn "
                "(got 'per_query'); use fixed"
            )

    def _check_quantised(self, quantization: Quantization) -> None:
        """Refuses tunings that need whole weights, and engines that serve these."""
        if not isinstance(self.tuning, LoRA):
            raise ValueError(
                f"quantization: tuning {self.tuning.name} trains the weights themselves, which need "
                "all their bits; use tuning: lora, or leave quantization out"
            )
        if self.teacher.engine is not None and quantization.teacher:
            raise ValueError(
                "quantization: an engine serves a teacher in dtype; set quantization.teacher: false, "
                "or leave teacher.engine out"
            )
        if isinstance(self.evaluation.engine, Engine):
            raise ValueError(
                "quantization: an engine serves the student's base in dtype, and it is trained in few "
                "bits; leave evaluation.engine out, and look at it with `instil check --engine vllm`"
            )

    def _check_logged(self) -> None:
        """Refuses settings that make no sense if the predictions stand in the rows."""
        if METHODS[self.method].learns != "targets":
            return
        if self.teacher.completions != "gold" or self.teacher.engine is not None:
            raise ValueError(
                "teacher.targets: the rows tell predictions of their own answers only (got "
                f"teacher.completions {self.teacher.completions}"
                f"{' and teacher.engine' if self.teacher.engine else ''}); use teacher.completions: "
                "gold without teacher.engine, or leave teacher.targets out"
            )
        objective = self.objective
        terms = objective.terms if isinstance(objective, WeightedSum) else (objective,)
        refused = [one.name for one in terms if isinstance(one, ReverseKL)]
        if refused or not objective.needs_targets:
            raise ValueError(
                f"teacher.targets: {refused[0] if refused else objective.name} "
                f"{'needs' if refused else 'learns no'} predictions of "
                f"{'all tokens, and some are known as text only' if refused else 'tokens'}; use "
                "objective: forward_kl, or leave teacher.targets out"
            )
        if isinstance(self.training.until, KlShare):
            raise ValueError(
                "training.until: kl_share cannot be reached if the end of an answer is learnt as text "
                "(got teacher.targets logged); use plateau"
            )
        self._check_told("teacher.targets")

    def _check_told(self, setting: str) -> None:
        """Refuses losses that read more than a server tells."""
        objective = self.objective
        if objective.needs_hidden_states or objective.needs_logits_of_teacher:
            raise ValueError(
                f"{setting}: a server tells log-probabilities, and {objective.name} reads more of "
                f"the teacher; use forward_kl, or leave out {setting}"
            )
        if objective.needs_targets and objective.temperature != 1:
            raise ValueError(
                f"{setting}: a server tells the likeliest outcomes at temperature 1 (got "
                f"objective.temperature {objective.temperature:g}); use 1, or leave out {setting}"
            )

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Recipe:
        """Checks settings and fills in the defaults.

        Args:
            settings: Nested mappings, as in the YAML file.

        Raises:
            ConfigError: there are problems; the message names them all. For an unknown key, it
                names the most similar known key.
        """
        recipe, problems = cls.check(settings)
        if recipe is None:
            raise ConfigError.listing(problems)
        return recipe

    @classmethod
    def check(
        cls, settings: Mapping[str, Any], *, file: type[Recipe] | None = None
    ) -> tuple[Recipe | None, list[str]]:
        """Returns the recipe, or a clause for each of its problems.

        Args:
            settings: Nested mappings.
            file: Model with all keys that a recipe file may have.
        """
        try:
            return cls.model_validate(settings), []
        except ValidationError as error:
            return None, [problem(file or cls, settings, e) for e in error.errors()]


def default_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the default names: section of a recipe -> its name if none is given."""
    labels = _asks_for_labels(settings.get("task"))
    return {"objective": "label_kl" if labels else "forward_kl", "tuning": "lora"}


def _asks_for_labels(task: Any) -> bool:
    """Whether the answers of a task, as a mapping or as an object, are labels."""
    name = task.get("name") if isinstance(task, Mapping) else getattr(task, "name", None)
    return name in TASKS and TASKS[name].answers == "labels"
