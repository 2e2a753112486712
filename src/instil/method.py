"""The table of methods: each is a row, so that all go down one path and are compared fairly."""

from __future__ import annotations

from dataclasses import dataclass

from instil.results import MethodName


@dataclass(frozen=True)
class Method:
    """How a query is answered.

    Attributes:
        name: Its key in `results.json`.
        label: What a person reads.
        context: Whether the context is in the prompt at evaluation.
        adapter: Whether the trained adapter is on.
    """

    name: MethodName
    label: str
    context: bool
    adapter: bool


METHODS = (
    Method("zero_shot", "zero-shot", context=False, adapter=False),
    Method("in_context", "in-context", context=True, adapter=False),
    Method("distilled", "distilled", context=False, adapter=True),
)
