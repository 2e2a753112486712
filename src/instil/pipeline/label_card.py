"""The model card of a study's adapter: what it scored, what to send, a snippet that runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from instil.methods import METHODS
from instil.results.cell import Cell


def render(
    cell: Cell,
    *,
    base: str,
    hub_id: str,
    prompt: str,
    words: Mapping[str, Sequence[str]],
    example: str,
) -> str:
    """The card as Markdown.

    Args:
        cell: What was trained and scored.
        base: What `from_pretrained` loads the base model from.
        hub_id: The base model's name on the hub, or its folder.
        prompt: The text to send, fields' names in braces.
        words: Label -> its surface forms, as they follow the prompt.
        example: A whole prompt for the snippet.
    """
    environment = Environment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
        trim_blocks=True,
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    text = (files("instil.pipeline") / "label_card.md.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        cell=cell,
        title=f"{cell.task}, by {METHODS[cell.method].label}",
        method=METHODS[cell.method].label,
        contexts=cell.recipe["teacher"]["contexts"],
        base=base,
        hub_id=hub_id,
        prompt=prompt,
        words=json.dumps({label: list(forms) for label, forms in words.items()}),
        example=example,
    )
