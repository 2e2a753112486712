"""The recipe: every setting of a run, checked as a whole.

A recipe knows no unknown keys and reports all its problems at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from instil.cell import StudyMethod
from instil.errors import ConfigError
from instil.objective import Objective
from instil.objective.forward_kl import ForwardKL
from instil.objective.label_kl import LabelKL
from instil.task import WRITTEN, Task
from instil.task.classification import Classification
from instil.task.writing import WritingTask
from instil.tuning import LoRA, Tuning
from instil.unread import unread
from instil.wording import problem


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ContextFiles(_Section):
    """Where the context is read from."""

    demos: Path | None = None
    instruction: Path | None = None
    document: Path | None = None
    k: int | None = Field(None, ge=1, description="take the first k demonstrations")


class Demonstrations(_Section):
    """How a task's demonstrations are drawn from its training set."""

    k: int = Field(8, ge=0, description="demonstrations a context; 0 makes a zero-shot teacher")
    pool: int = Field(3000, ge=1, description="rows that they are drawn from")
    draw: Literal["fixed", "per_query"] = Field(
        "fixed", description="once for all queries, or anew for each"
    )
    contexts: int | None = Field(
        None,
        ge=1,
        description="with per_query: so many contexts, dealt out among the queries (those of teacher.contexts are averaged); null: one for each",
    )
    balanced: bool = Field(True, description="as many of each label as can be")
    answers: Literal["gold", "shuffled"] = Field(
        "gold", description="shuffled: a control whose answers are dealt out anew among the queries"
    )

    @model_validator(mode="after")
    def _enough_to_shuffle(self) -> Self:
        if self.answers == "shuffled" and self.k == 1:
            raise ValueError("answers: shuffled needs k > 1: one answer stays where it is")
        if self.contexts is not None and self.draw != "per_query":
            raise ValueError("contexts: only with draw: per_query; fixed has one for all queries")
        return self


class Data(_Section):
    """Where the rows are read from."""

    inputs: Path | None = None
    eval: Path | None = None
    allow_overlap: bool = False


class Prompt(_Section):
    """How a query is put to the model."""

    format: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="auto: chat where there is a template; with a classification task, plain",
    )
    pattern: str = "Q: {input}\nA:"
    completion: str = " {output}\n"
    separator: str = Field(
        "\n", description="plain: stands between a demonstration and what follows"
    )
    chat_template_kwargs: dict[str, Any] = {}

    @field_validator("pattern")
    @classmethod
    def _has_input(cls, value: str) -> str:
        if value.count("{input}") != 1:
            raise ValueError("must hold {input} exactly once")
        return value

    @field_validator("completion")
    @classmethod
    def _has_output_and_stop(cls, value: str) -> str:
        if value.count("{output}") != 1:
            raise ValueError("must hold {output} exactly once")
        if not value.partition("{output}")[2]:
            raise ValueError("must hold text after {output}: it is what ends an answer")
        return value


class Teacher(_Section):
    """Who teaches, and who writes the completions that are learnt."""

    model: str | None = Field(None, description="null: the student's own weights, adapter off")
    completions: Literal["teacher", "gold"] = "teacher"
    samples: int = Field(
        1, ge=1, description="completions an input; more than 1 needs a temperature"
    )
    sampling_temperature: float = Field(0.0, ge=0, description="0 decodes greedily")
    max_new_tokens: int | None = Field(
        None, ge=1, description="null: from the longest known answer"
    )
    top_k: int = Field(
        256,
        ge=1,
        description="most outcomes kept a token; the tail is one more, or as many may be drawn from it",
    )
    min_probability: float = Field(
        5e-4, ge=0, lt=1, description="of what is kept, at temperature 1; 0 with mass 1: all top_k"
    )
    mass: float = Field(
        1.0, gt=0, le=1, description="keep no more of a token than covers this, at temperature 1"
    )
    mass_per_draw: float = Field(
        1e-3,
        ge=0,
        lt=1,
        description="of what is not kept, one outcome is drawn for each such part of its mass, for forward_kl, top_k at most; 0: none",
    )
    store: Path | None = Field(
        None,
        description="folder of targets that runs share and that stays; null: a study's own, or gone with the run",
    )
    contexts: int = Field(
        1, ge=1, description="of a task: sets of demonstrations whose predictions are averaged"
    )
    calibration: Literal["none", "contextual", "batch"] = Field(
        "none",
        description="of a task: divide by the prediction for an input without content, or by the mean over the inputs",
    )

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.sampling_temperature == 0:
            raise ValueError(
                "samples > 1 needs sampling_temperature > 0: greedy samples are all equal"
            )
        if self.completions == "gold" and (self.samples > 1 or self.sampling_temperature > 0):
            raise ValueError(
                "samples and sampling_temperature are for completions: teacher, not gold"
            )
        return self


class Student(_Section):
    """Who learns."""

    keep_layers: int | tuple[int, ...] | None = Field(
        None,
        description="of a task: how many layers of the model, evenly spread, or which ones, make the student",
    )
    save: bool = Field(True, description="of a task: keep the trained weights with the cell")


class Training(_Section):
    """How the student is optimised."""

    rows: int | None = Field(
        None,
        ge=1,
        description="of a task: inputs to learn from; null: 400, or half of a smaller training set",
    )
    learning_rate: float = Field(1e-3, gt=0)
    epochs: float | None = Field(None, gt=0, description="null: max_steps decides")
    max_steps: int | None = Field(
        None,
        ge=1,
        description="null: epochs decide; both null: 60 steps, or one epoch if that is more",
    )
    batch_size: int = Field(
        16, ge=1, description="rows of a forward pass, all processes of a launch together"
    )
    grad_accumulation: int = Field(1, ge=1)
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps spent warming up")
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in backward: slower, in less memory"
    )
    report_to: Literal["none", "tensorboard"] = Field(
        "none", description="where the loss curve goes, too; tensorboard: files in the run folder"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps exclude each other")
        return self


class Evaluation(_Section):
    """How the student is judged."""

    batch_size: int = Field(64, ge=1, description="most rows decoded or scored together")
    rows: int | None = Field(None, ge=1, description="of a task: rows of each set; null: 500")
    rows_out_of_domain: int | None = Field(
        None, ge=1, description="of a task: rows of each set from elsewhere; null: as many"
    )
    at_steps: int | tuple[int, ...] | None = Field(
        None,
        description="of a task whose answers are written: judge the student at first, each so many steps or at those of a list, and at last, and keep the best",
    )
    validation_rows: int = Field(
        50, ge=1, description="with at_steps: rows of the training set that it is judged on"
    )

    @field_validator("at_steps")
    @classmethod
    def _from_one_on(cls, at_steps: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if (
            at_steps is not None
            and min([at_steps] if isinstance(at_steps, int) else at_steps, default=0) < 1
        ):
            raise ValueError("steps are counted from 1, and a list names at least one")
        return at_steps


class Recipe(_Section):
    """All settings of one run. Every section has defaults that give a good adapter."""

    model: str
    task: Task | None = Field(None, description="null: the context and the rows come from files")
    method: StudyMethod = Field("distillation", description="of a task")
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
    def _name_defaults(cls, settings: Any) -> Any:
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
        elif isinstance(self.task, WritingTask):
            self._check_writing(self.task)
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

    def _check_writing(self, task: WritingTask) -> None:
        """Refuses what needs labels, steps that are never reached, and a draw of demonstrations that are not drawn."""
        at_steps, last = self.evaluation.at_steps, self.training.max_steps
        if isinstance(at_steps, tuple) and last is not None and max(at_steps) > last:
            raise ValueError(
                f"evaluation.at_steps: training ends after step {last} (got {max(at_steps)}); "
                "leave it out, or raise training.max_steps"
            )
        if isinstance(self.objective, LabelKL):
            raise ValueError(
                "objective: label_kl needs labels, and the task's answers are written; "
                "use forward_kl or another loss of tokens"
            )
        if self.method == "vanilla_fine_tuning":
            raise ValueError(
                "method: vanilla_fine_tuning trains a head of labels, and the task's answers are written; "
                "use pattern_fine_tuning"
            )
        if not isinstance(self.tuning, LoRA):
            raise ValueError("tuning: with written answers only lora, whose base stays at hand")
        if self.student.keep_layers is not None:
            raise ValueError("student.keep_layers: not read with a task whose answers are written")
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
            return None, [problem(file or cls, settings, dict(e)) for e in error.errors()]


def default_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """Section of a recipe -> the name that it has if none is given."""
    labels = _asks_for_labels(settings.get("task"))
    return {"objective": "label_kl" if labels else "forward_kl", "tuning": "lora"}


def _asks_for_labels(task: Any) -> bool:
    """Whether there is a task, checked already or not, and its answers are labels."""
    name = task.get("name") if isinstance(task, Mapping) else getattr(task, "name", None)
    return bool(task) and name not in WRITTEN
