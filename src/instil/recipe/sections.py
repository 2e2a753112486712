"""The sections of a recipe, one class each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from instil.metrics import comparing
from instil.metrics.rules import Rule, read_rules, rules_of
from instil.system.files import content_digest
from instil.system.settings import Settings

# See benchmarks/training_defaults.py. If one pass over the rows needs more steps, more are taken.
DEFAULT_STEPS = 60
MOST_TIMES = 10  # how many times as many are taken at most with training.until

FORMAT_KEYS = {
    "chat": ("chat_template_kwargs",),
    "plain": ("pattern", "completion", "separator"),
}
"""Format of prompts -> the keys of `prompt` that only this format reads."""


class Section(Settings):
    """A section of a recipe. It refuses unknown keys and is immutable."""


class Demonstrations(Section):
    """How a task's demonstrations are drawn from its training set."""

    k: int = Field(
        8, ge=0, description="Demonstrations per context. With 0, the teacher is zero-shot."
    )
    pool: int = Field(
        3000,
        ge=1,
        description="Maximum number of training rows from which demonstrations are drawn.",
    )
    draw: Literal["fixed", "per_query"] = Field(
        "fixed",
        description="fixed: draw demonstrations once for all queries. per_query: draw new "
        "demonstrations for each query.",
    )
    contexts: int | None = Field(
        None,
        ge=1,
        description="With draw: per_query only. Number of contexts that are drawn; each query "
        "reads one of them. null: a new context for each query. (To average the predictions under "
        "several contexts, use teacher.contexts.)",
    )
    balanced: bool = Field(
        True,
        description="Classification only. Draw the same number of demonstrations for each label, "
        "as far as possible.",
    )
    answers: Literal["gold", "shuffled"] = Field(
        "gold",
        description="gold: each demonstration has its own answer. shuffled: the answers are "
        "shuffled among the demonstrations, as a control.",
    )

    @model_validator(mode="after")
    def _enough_to_shuffle(self) -> Self:
        if self.answers == "shuffled" and self.k == 1:
            raise ValueError("answers: shuffled needs k > 1, since one answer cannot be shuffled")
        if self.contexts is not None and self.draw != "per_query":
            raise ValueError(
                "contexts: needs draw: per_query, since draw: fixed has one context for all queries"
            )
        return self


class Prompt(Section):
    """How a query is rendered as a prompt."""

    format: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="Format of the prompts. auto: plain for classification; for free text, chat if "
        "the model has a chat template, else plain.",
    )
    pattern: str = Field(
        "Q: {input}\nA:",
        description="Plain format and task `files` only. Prompt of a query, with {input} in place "
        "of the query.",
    )
    completion: str = Field(
        " {output}\n",
        description="Plain format only. Completion of a prompt, with {output} in place of the "
        "answer. The text after {output} ends an answer.",
    )
    separator: str = Field(
        "\n", description="Plain format only. Text after each demonstration in a prompt."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Chat format only. Arguments that are passed to the chat template."
    )

    @field_validator("pattern")
    @classmethod
    def _has_input(cls, value: str) -> str:
        if value.count("{input}") != 1:
            raise ValueError("must contain {input} exactly once")
        return value

    @field_validator("completion")
    @classmethod
    def _has_output_and_stop(cls, value: str) -> str:
        if value.count("{output}") != 1:
            raise ValueError("must contain {output} exactly once")
        before, _, after = value.partition("{output}")
        if not after:
            raise ValueError("must contain text after {output}, because this text ends an answer")
        if after in before:
            raise ValueError(
                f"the text before {{output}} must not contain {after!r}, because this text ends an "
                "answer"
            )
        return value

    def unread(self, format: Literal["chat", "plain"]) -> list[str]:
        """Returns the keys that are set and have no effect in a format."""
        keys = FORMAT_KEYS["plain" if format == "chat" else "chat"]
        set_here = self.model_dump(exclude_defaults=True)
        if self.pattern == "{input}":  # what a task with its own pattern fills in
            del set_here["pattern"]
        return [key for key in keys if key in set_here]


class Engine(Section):
    """A server that writes and scores in place of the models in this process."""

    name: Literal["vllm"] = Field(
        "vllm",
        description="Which engine it is. An API of chats is none: `instil answer` lets it answer "
        "the rows before the run.",
    )
    url: str | None = Field(
        None,
        description="Address of a server that `instil engine start` has started, such as "
        "http://127.0.0.1:8000. null: the run starts one, and ends it.",
    )
    python: Path | None = Field(
        None,
        description="Python of the environment with vLLM. null: that of the environment variable "
        "INSTIL_VLLM_PYTHON, else .venv-vllm/bin/python, else the Python that runs instil.",
    )
    options: tuple[str, ...] = Field(
        (),
        description="Further options of the server: `[--gpu-memory-utilization, '0.6']`.",
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("an address begins with http:// or https://")
        return url


class Teacher(Section):
    """Which model teaches, which completions are learnt, and which targets are stored."""

    model: str | None = Field(
        None,
        description="Model of the teacher. null: the model of the student, with the adapter off.",
    )
    completions: Literal["teacher", "gold"] = Field(
        "teacher",
        description="Free text only. Completions to learn. teacher: written by the teacher. gold: "
        "outputs of the training rows.",
    )
    samples: int = Field(
        1,
        ge=1,
        description="Free text only. Completions to sample per input. More than 1 needs a "
        "sampling_temperature above 0.",
    )
    sampling_temperature: float = Field(
        0.0,
        ge=0,
        description="Free text only. Temperature for sampling completions. 0 decodes greedily.",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="Free text only. Maximum number of tokens per answer, of the teacher and the "
        "student. null: derived from the longest known answer.",
    )
    top_k: int = Field(
        256,
        ge=1,
        description="Maximum number of teacher log-probabilities to store per token. The remaining "
        "tokens of the vocabulary (the tail) count as one outcome, or are sampled: see "
        "mass_per_draw.",
    )
    min_probability: float = Field(
        5e-4,
        ge=0,
        lt=1,
        description="Free text only. Store only outcomes with at least this probability, at "
        "temperature 1. With 0 and mass 1, all top_k are stored.",
    )
    mass: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Free text only. Store only the most likely outcomes that together cover this "
        "probability mass, at temperature 1.",
    )
    mass_per_draw: float = Field(
        1e-3,
        ge=0,
        lt=1,
        description="Free text with forward_kl only. Sample one tail outcome for each such part of "
        "the probability mass that is not stored, at most top_k. 0: sample none.",
    )
    targets: Literal["computed", "logged"] = Field(
        "computed",
        description="Free text only. logged: the teacher's predictions stand in the rows, as `instil "
        "answer --logprobs` writes them. computed: the teacher's model makes them.",
    )
    engine: Engine | None = Field(
        None,
        description="Free text only. Where the teacher writes and scores: `{name: vllm}`. null: in "
        "this process.",
    )
    store: Path | None = Field(
        None,
        description="Free text only. Folder in which targets stay and are shared between runs. "
        "null: a study has its own folder; a single run removes its targets at the end.",
    )
    contexts: int = Field(
        1,
        ge=1,
        description="Classification only. Number of contexts whose predictions are averaged.",
    )
    calibration: Literal["none", "contextual", "batch"] = Field(
        "none",
        description="Classification only. contextual: divide by the predictions for inputs without "
        "content. batch: divide by the mean prediction over the training inputs.",
    )

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.sampling_temperature == 0:
            raise ValueError(
                "samples > 1 needs sampling_temperature > 0, since greedy samples are all equal"
            )
        if self.completions == "gold" and (self.samples > 1 or self.sampling_temperature > 0):
            raise ValueError(
                "samples and sampling_temperature need completions: teacher, since gold "
                "completions are not sampled"
            )
        return self


class Student(Section):
    """Which layers the student has, and whether it is saved."""

    keep_layers: int | tuple[int, ...] | None = Field(
        None,
        description="Classification only. Layers of the model that the student has: their number "
        "(evenly spaced), or a list of layer numbers. null: all layers.",
    )
    save: bool = Field(
        True, description="Save the trained weights in the folder of the run or cell."
    )


class KlShare(Section):
    """Training ends when the held-out loss has fallen to a share of what it was before."""

    kl_share: float = Field(
        gt=0, lt=1, description="Share of the loss on held-out rows before the training."
    )


Until = Annotated[
    Annotated[Literal["plateau"], Tag("word")] | Annotated[KlShare, Tag("{kl_share}")],
    Discriminator(lambda value: "{kl_share}" if isinstance(value, Mapping | KlShare) else "word"),
]
"""What ends a training. For a wrong value, the error names only the form that was written."""


class Training(Section):
    """How the student is optimised."""

    rows: int | None = Field(
        None,
        ge=1,
        description="Number of training rows that the student learns from. null: 400, or half of a "
        "smaller training set. Not for the task `files`, which uses all inputs.",
    )
    make_inputs: int = Field(
        0,
        ge=0,
        description="Free text only. Number of further inputs that the teacher writes, because there "
        "are few: more like those that are given. None is a near-copy of an evaluation row.",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate after the warm-up.")
    epochs: float | None = Field(
        None, gt=0, le=1e6, description="Passes over the training rows. null: see max_steps."
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description="Number of optimiser steps; with until, their maximum. Cannot be set together "
        "with epochs. If both are null: 60 steps, or one epoch if that is more.",
    )
    until: Until | None = Field(
        None,
        description="Free text only. A tenth of the rows is held out, and the loss on them is "
        "measured every 10 steps. plateau: training ends when it no longer falls. {kl_share: 0.05}: "
        "already when it has fallen to 5 % of what it was before. The best weights are kept. With "
        "max_steps or epochs, training ends then at the latest, else after ten times 60 steps, or "
        "ten epochs if that is more. With fewer than 20 rows, none is held out, and nothing is "
        "measured. null: the number of steps is fixed. `instil distill` sets plateau if it is given "
        "no number of steps.",
    )
    batch_size: int = Field(
        16, ge=1, description="Rows per forward pass, summed over all processes."
    )
    grad_accumulation: int = Field(1, ge=1, description="Forward passes per optimiser step.")
    warmup_share: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="How the learning rate falls after the warm-up."
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the optimiser.")
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass: training is slower and needs less "
        "memory.",
    )
    report_to: Literal["none", "tensorboard"] = Field(
        "none",
        description="Free text only. Where to write loss curves. tensorboard: as files in the run "
        "folder.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps cannot both be set")
        return self

    def steps(self, rows: int) -> int:
        """Returns the number of optimiser steps for this number of rows."""
        if self.max_steps is not None:
            return self.max_steps
        one_pass = math.ceil(math.ceil(rows / self.batch_size) / self.grad_accumulation)
        if self.epochs is None:
            return max(DEFAULT_STEPS, one_pass)
        return math.ceil(self.epochs * one_pass)

    def most_steps(self, rows: int) -> int:
        """Returns the highest number of optimiser steps with `until`."""
        fixed = self.steps(rows)
        return fixed if self.max_steps or self.epochs else MOST_TIMES * fixed


class Prices(Section):
    """Prices of a million tokens, in any currency."""

    input: float = Field(ge=0, description="Tokens of a prompt that are read.")
    cached_input: float = Field(ge=0, description="Tokens of a prompt that are in a prefix cache.")
    output: float = Field(ge=0, description="Tokens that are written.")


class Evaluation(Section):
    """How the student is evaluated."""

    batch_size: int = Field(
        64, ge=1, description="Maximum number of rows that are decoded or scored together."
    )
    baselines: tuple[Literal["zero_shot", "in_context"], ...] = Field(
        (),
        description="Free text only. Other methods that answer the same rows, with the weights "
        "that are already loaded.",
    )
    rows: int | None = Field(
        None,
        ge=1,
        description="Maximum number of rows per in-domain set. null: 500. Not for the task "
        "`files`, which uses all rows.",
    )
    rows_out_of_domain: int | None = Field(
        None,
        ge=1,
        description="Maximum number of rows per out-of-domain set. null: the same as `rows`. Not "
        "for the task `files`.",
    )
    drift_tokens: int | None = Field(
        500,
        ge=1,
        description="Tokens of unrelated text, of each of six kinds, on which drift is measured. "
        "null: all, 4,000 to 10,000 of each.",
    )
    general_prompts: int | None = Field(
        63,
        ge=7,
        description="Free text only. Number of general prompts, of seven kinds, on which the student's "
        "answers are compared with those of its base. null: all 240.",
    )
    at_steps: int | tuple[int, ...] | None = Field(
        None,
        description="Free text only. Evaluate before training, every N steps (or at the listed "
        "steps) and at the end; keep the best.",
    )
    validation_rows: int = Field(
        50,
        ge=1,
        description="With at_steps only. Number of training rows that are set aside for these "
        "evaluations.",
    )

    metrics: tuple[str, ...] = Field(
        (),
        description="Free text only. How an answer is compared with the gold output: `exact`, "
        "`normalised`, `contains`, `starts_with`, `ends_with`, `regex`, `number`, `choice`, "
        "`json_valid`, `json_equal`, `json_fields` (with a JSON Schema: `json_fields:FILE`), `tool_call`, `token_f1`, `rouge_l`, `chrf`, or "
        "`python:MODULE.FUNCTION`. The first one decides accuracy and recovery. Empty: the task's "
        "own rule, which is `exact` for the task `files`.",
    )
    prices: Prices | None = Field(
        None,
        description="Free text only. Prices of a million tokens, for the costs in the report: "
        "`{input: 0.15, cached_input: 0.015, output: 0.6}`.",
    )
    rules: Path | tuple[dict[str, Any], ...] | None = Field(
        None,
        description="Free text only. What an answer must obey: a YAML file of rules, or the rules.",
    )
    engine: Engine | Literal["auto"] | None = Field(
        None,
        description="Free text only. Where the evaluation rows are answered at the end: `{name: "
        "vllm}`, with the adapter on the server. auto: on vLLM, if it is installed and there is an "
        "accelerator. null: in this process. What is compared with the teacher is always read here.",
    )

    @field_validator("engine")
    @classmethod
    def _starts_it(cls, engine: Engine | Literal["auto"] | None) -> Engine | Literal["auto"] | None:
        if isinstance(engine, Engine) and engine.url is not None:
            raise ValueError(
                "a server that runs does not have the adapter that this run will train; leave url out"
            )
        return engine

    @field_validator("metrics")
    @classmethod
    def _are_known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for name in metrics:
            comparing(name, read=False)
        if len(set(metrics)) < len(metrics):
            raise ValueError("a metric is named twice")
        return metrics

    @field_validator("rules")
    @classmethod
    def _are_rules(cls, rules: Any) -> Any:
        if isinstance(rules, tuple):
            rules_of([*rules])
        return rules

    def measured_by(self) -> list[str]:
        """The metrics; if one reads a file, with a digest of its content."""
        made = []
        for name in self.metrics:
            file = Path(name.partition(":")[2] or ".")
            made.append(f"{name} {content_digest(file)}" if file.is_file() else name)
        return made

    def ruled(self) -> list[Rule]:
        """The rules; empty if there are none. See `instil.metrics.rules.read_rules`."""
        if self.rules is None:
            return []
        return read_rules(self.rules) if isinstance(self.rules, Path) else rules_of([*self.rules])

    @field_validator("at_steps")
    @classmethod
    def _from_one_on(cls, at_steps: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if (
            at_steps is not None
            and min([at_steps] if isinstance(at_steps, int) else at_steps, default=0) < 1
        ):
            raise ValueError("steps are 1 or more, and a list must have at least one step")
        return at_steps
