"""The model card of an adapter: its training, its prompt, its scores and a code example."""

from __future__ import annotations

import json
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from instil.methods import METHODS
from instil.models import bundled
from instil.models.load import loader
from instil.models.source import resolve
from instil.results.schema import Results
from instil.results.scores import Proportion


def render(results: Results, *, example: str, merged: bool = False) -> str:
    """Returns the card as Markdown.

    Args:
        results: Results of the run.
        example: Query for the code example.
        merged: Whether the card is of a whole model, with the adapter merged into its weights.
    """
    source = resolve(results.model)
    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, trim_blocks=True
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    text = (files("instil.pipeline") / "card.md.j2").read_text(encoding="utf-8")
    prompt, stop = results.prompt, ""
    if prompt.stop:
        stop = f", stop_strings={prompt.stop!r}, tokenizer=tokenizer"
    return environment.from_string(text).render(
        results=results,
        prompt=prompt,
        messages=[message.model_dump() for message in prompt.messages or []],
        methods=[(METHODS[result.method].label, result) for result in results.methods],
        student=results.methods[0],
        method=METHODS[results.method],
        zero_shot=results.result("zero_shot"),
        runs=_answers_alone(results),
        accuracy=_accuracy,
        base="." if merged else source.path,
        merged=merged,
        loader=loader(results.model),
        revision=None if merged else source.pinned,
        hub_id=bundled.hub_id(results.model)
        if results.model.startswith(bundled.PREFIX)
        else source.path,
        example=example,
        stop=" or ".join(f"`{text!r}`" for text in prompt.stop),
        cut="".join(f".partition({text!r})[0]" for text in prompt.stop),
        stop_arguments=f"{stop}, eos_token_id={prompt.end_ids}" if prompt.end_ids else stop,
        template_arguments="".join(
            f", {name}={value!r}" for name, value in prompt.template_kwargs.items()
        ),
    )


def _answers_alone(results: Results) -> bool:
    """Whether the code example works: base model, adapter and query are all that is needed."""
    method = METHODS[results.method]
    all_layers = results.recipe["student"]["keep_layers"] is None
    sendable = results.prompt.format == "plain" or not results.labels
    return all_layers and sendable and not method.context and method.head == "language_model"


def _accuracy(score: Proportion | None) -> str:
    if score is None:
        return "not measured"
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f}, n = {score.n})"
