"""A finished distillation, written down: results, adapter with its card, predictions, report, settings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from instil.methods import PHASES, RUN_METHODS, Phase, RunMethodName
from instil.models import bundled
from instil.models.load import resolve
from instil.models.roles import Models
from instil.pipeline import card
from instil.prompts.context import Context
from instil.prompts.format import ChatPrompt, PlainPrompt, PromptFormat
from instil.recipe.recipe import Recipe
from instil.report import render as render_report
from instil.results.schema import (
    RESULTS,
    Cost,
    Drift,
    Fidelity,
    Message,
    MethodResult,
    PhaseCost,
    Prediction,
    Results,
    Training,
)
from instil.results.statistics import recovery
from instil.system import environment
from instil.system.environment import VERSION
from instil.system.files import write_lines
from instil.tasks.rows import Row, digest
from instil.training.trainer import TrainingReport

SPENT: tuple[Phase, ...] = ("generate", "teach", "train")  # what distilling costs
NOTHING = PhaseCost(
    wall_seconds=0,
    cpu_user_seconds=0,
    cpu_system_seconds=0,
    peak_rss_mb=0,
    mean_rss_mb=0,
    tokens=0,
    steps=0,
)


@dataclass(frozen=True)
class Finished:
    """All that a run knows when its last stage is done.

    Attributes:
        recipe: Its settings.
        inputs: Rows learnt from.
        held_out: Rows judged on.
        models: Teacher and student.
        form: Renders the prompts.
        context: What the teacher read.
        max_new_tokens: Limit of an answer.
        methods: Scores.
        predictions: Answers.
        fidelity: To the teacher.
        drift: From the base.
        trained: What training did.
        completions: Token ids that were learnt.
        truncated: How many of them were cut at the limit.
        costs: Of the phases that the recipe needed.
    """

    recipe: Recipe
    inputs: Sequence[Row]
    held_out: Sequence[Row]
    models: Models
    form: PromptFormat
    context: Context
    max_new_tokens: int
    methods: dict[RunMethodName, MethodResult]
    predictions: list[Prediction]
    fidelity: Fidelity
    drift: Drift
    trained: TrainingReport
    completions: list[list[int]]
    truncated: int
    costs: dict[Phase, PhaseCost]

    def results(self) -> Results:
        """What goes into `results.json`."""
        form, judged = self.form, self.models
        parameters = list(judged.student.network.parameters())
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        return Results(
            instil_version=VERSION,
            model=self.recipe.model,
            teacher_model=None if judged.teacher is judged.student else judged.teacher.name,
            dtype=judged.student.dtype,
            seed=self.recipe.seed,
            format=cast(Any, form.name),
            student_prompt=form.pattern if isinstance(form, PlainPrompt) else None,
            student_messages=[Message.model_validate(m) for m in form.messages("{input}")]
            if isinstance(form, ChatPrompt)
            else None,
            stop=form.stop,
            max_new_tokens=self.max_new_tokens,
            context=self._context(),
            methods=self.methods,
            recovery=self._recovery(),
            fidelity=self.fidelity,
            drift=self.drift,
            training=Training(
                rows=len(self.completions),
                tokens=sum(map(len, self.completions)),
                truncated_completions=self.truncated,
                steps=self.trained.steps,
                trainable_parameters=trainable,
                trainable_share=trainable / sum(p.numel() for p in parameters),
                loss=self.trained.loss,
            ),
            phases={name: self.costs.get(name, NOTHING) for name in PHASES},
            cost=self._cost(),
        )

    def write(self, folder: Path) -> None:
        """Writes what a run folder holds."""
        results, form = self.results(), self.form
        described = environment.describe()
        network = cast(Any, self.models.student.network)
        network.save_pretrained(folder / "adapter", save_embedding_layers=False)
        text = card.render(
            results,
            base=resolve(self.recipe.model),
            hub_id=bundled.hub_id(self.recipe.model),
            end_ids=form.end_ids,
            template_kwargs=form.template_kwargs if isinstance(form, ChatPrompt) else {},
            example=self.held_out[0].input,
        )
        (folder / "adapter" / "README.md").write_text(text, encoding="utf-8")
        results.write(folder / RESULTS)
        write_lines(folder / "predictions.jsonl", self.predictions)
        page = render_report(
            results,
            self.predictions,
            environment=described,
            context_text=form.text("{input}", self.context),
        )
        for name, content in (
            ("environment.json", json.dumps(described, indent=1) + "\n"),
            ("config.yaml", self._settings(results)),
            ("report.html", page),
        ):
            (folder / name).write_text(content, encoding="utf-8")

    def _settings(self, results: Results) -> str:
        settings = {
            "recipe": self.recipe.model_dump(mode="json"),
            "resolved": {
                "dtype": results.dtype,
                "format": results.format,
                "max_new_tokens": self.max_new_tokens,
                "steps": results.training.steps,
                "inputs": {"rows": len(self.inputs), "sha256": digest(self.inputs)},
                "eval": {"rows": len(self.held_out), "sha256": digest(self.held_out)},
                "context": results.context,
            },
        }
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)

    def _context(self) -> dict[str, Any]:
        context = self.context
        shots = len(context.demonstrations)
        parts = [
            *(["a document"] if context.document else []),
            *(["an instruction"] if context.instruction else []),
            *([f"{shots} demonstration{'s' * (shots != 1)}"] if shots else []),
        ]
        *most, last = parts
        return {
            "description": f"{', '.join(most)} and {last}" if most else last,
            "k": shots,
            "tokens": round(self._tokens_saved()),
            "sha256": context.digest(),
        }

    def _recovery(self) -> float | None:
        ordered = [self.methods[name].accuracy for name in RUN_METHODS]
        scores = [score.value for score in ordered if score]
        if len(scores) < len(RUN_METHODS):
            return None
        zero_shot, in_context, distilled = scores
        return recovery(zero_shot=zero_shot, in_context=in_context, distilled=distilled)

    def _cost(self) -> Cost:
        spent = sum(self.costs.get(name, NOTHING).wall_seconds for name in SPENT)
        before, after = self.methods["in_context"], self.methods["distilled"]
        saved = before.seconds_per_query - after.seconds_per_query
        return Cost(
            prompt_tokens_saved_per_query=self._tokens_saved(),
            break_even_queries=math.ceil(spent / saved) if saved > 0 else None,
        )

    def _tokens_saved(self) -> float:
        before, after = self.methods["in_context"], self.methods["distilled"]
        return before.prompt_tokens_mean - after.prompt_tokens_mean
