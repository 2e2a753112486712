"""The recipe: every setting of a run, checked as a whole.

A recipe knows no unknown keys and reports all its problems at once.
"""

from __future__ import annotations

import difflib
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

from instil.errors import ConfigError
from instil.objective import Objective
from instil.objective.forward_kl import ForwardKL
from instil.tuning import LoRA


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ContextFiles(_Section):
    """Where the context is read from."""

    demos: Path | None = None
    instruction: Path | None = None
    document: Path | None = None
    k: int | None = Field(None, ge=1, description="take the first k demonstrations")


class Data(_Section):
    """Where the rows are read from."""

    inputs: Path | None = None
    eval: Path | None = None
    allow_overlap: bool = False


class Prompt(_Section):
    """How a query is put to the model."""

    format: Literal["auto", "chat", "plain"] = "auto"
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
        256, ge=1, description="log-probabilities kept a token; the tail is one more"
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


class Training(_Section):
    """How the student is optimised."""

    learning_rate: float = Field(1e-3, gt=0)
    epochs: float | None = Field(None, gt=0, description="null: max_steps decides")
    max_steps: int | None = Field(
        None,
        ge=1,
        description="null: epochs decide; both null: 60 steps, or one epoch if that is more",
    )
    batch_size: int = Field(16, ge=1)
    grad_accumulation: int = Field(1, ge=1)
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps spent warming up")
    schedule: Literal["linear", "cosine", "constant"] = "cosine"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps exclude each other")
        return self


class Evaluation(_Section):
    """How the student is judged."""

    batch_size: int = Field(64, ge=1, description="most rows decoded or scored together")


class Recipe(_Section):
    """All settings of one run. Every section has defaults that give a good adapter."""

    model: str
    context: ContextFiles = ContextFiles()
    data: Data = Data()
    prompt: Prompt = Prompt()
    teacher: Teacher = Teacher()
    objective: Objective = ForwardKL()
    tuning: LoRA = LoRA()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = Field(0, ge=0)

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Recipe:
        """Checks settings and fills in the defaults.

        Args:
            settings: Nested mappings, as in the YAML file.

        Raises:
            ConfigError: names every problem, with the nearest known key for an unknown one.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            problems = [_problem(cls, dict(e)) for e in error.errors()]
            raise ConfigError(
                f"the recipe has {len(problems)} problem{'s' * (len(problems) > 1)}: "
                + "; ".join(problems),
                mend="see docs/reference/recipe.md",
            ) from None


def _problem(recipe: type[BaseModel], error: dict[str, Any]) -> str:
    """One pydantic error in one clause: where, what, and what was meant."""
    location = [str(part) for part in error["loc"]]
    text = f"{'.'.join(location) or 'recipe'}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] != "extra_forbidden":
        return f"{text} (got {error['input']!r})"
    known = _keys_at(recipe, location[:-1])
    near = difflib.get_close_matches(location[-1], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"{'.'.join(location)}: unknown key; {hint}"


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The field names of the section that `path` leads to; of a union, those of all members."""
    for part in path:
        field = model.model_fields.get(part)
        if field is None:  # the tag of a discriminated union
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return list(model.model_fields)
