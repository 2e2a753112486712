"""The adapter's model card: what it is, what to send, what it scored, a snippet that runs."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from instil.methods import RUN_METHODS
from instil.results.schema import MethodResult, Results


def render(
    results: Results,
    *,
    base: str,
    hub_id: str,
    end_ids: list[int],
    template_kwargs: dict[str, Any],
    example: str,
) -> str:
    """The card as Markdown.

    Args:
        results: Of the run.
        base: What `from_pretrained` loads the base model from.
        hub_id: The base model's name on the hub, or its folder.
        end_ids: Token ids that end an answer.
        template_kwargs: Passed to the chat template.
        example: A query for the snippet.
    """
    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(
        (files("instil.pipeline") / "card.md.j2").read_text(encoding="utf-8")
    )
    stop = f", stop_strings={results.stop!r}, tokenizer=tokenizer" if results.stop else ""
    return template.render(
        results=results,
        title="A prompt, distilled",
        context=results.context["description"],
        saved=f"{results.cost.prompt_tokens_saved_per_query:,.0f}",
        methods=[(method.label, results.methods[name]) for name, method in RUN_METHODS.items()],
        accuracy=_accuracy,
        stop=" or ".join(f"`{text!r}`" for text in results.stop),
        base=base,
        hub_id=hub_id,
        cut="".join(f".partition({text!r})[0]" for text in results.stop),
        example=example,
        template_kwargs=template_kwargs,
        template_arguments="".join(
            f", {name}={value!r}" for name, value in template_kwargs.items()
        ),
        stop_arguments=f"{stop}, eos_token_id={end_ids}" if end_ids else stop,
    )


def _accuracy(method: MethodResult) -> str:
    score = method.accuracy
    if score is None:
        return "not measured"
    return f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f}, n = {score.n})"
