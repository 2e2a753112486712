"""Verbalizers: label -> surface forms, for example `{"entailment": ("Yes", "yes")}`.

A surface form is a text that means the label. Demonstrations show the first one. Checks that need a
tokenizer are in `instil.prompts.labels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator


def _listed(value: object) -> object:
    """Accepts a single form that is not in a list, and integers as labels."""
    if not isinstance(value, Mapping):
        return value
    listed = {}
    for label, forms in value.items():
        forms = [forms] if isinstance(forms, str | bool) else forms
        if isinstance(label, bool) or (
            isinstance(forms, list | tuple) and any(isinstance(form, bool) for form in forms)
        ):
            raise ValueError(
                f"{label!r}: {forms!r} contains true or false, which is how YAML reads an unquoted "
                "Yes or No; "
                "put it in quotation marks"
            )
        listed[str(label) if isinstance(label, int) else label] = forms
    return listed


def _checked(value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    if len(value) < 2:
        raise ValueError("must have at least two labels")
    label_of: dict[str, str] = {}
    for label, forms in value.items():
        if not forms:
            raise ValueError(f"label {label!r} has no surface form")
        for form in forms:
            if not form or form != form.strip():
                raise ValueError(
                    f"label {label!r} has the surface form {form!r}: "
                    "it must not be empty, and must not begin or end with a space"
                )
            if label_of.setdefault(form, label) != label:
                raise ValueError(
                    f"labels {label_of[form]!r} and {label!r} have the same surface form {form!r}; "
                    "each form must belong to one label"
                )
    return value


Verbalizer = Annotated[
    dict[str, tuple[str, ...]],
    BeforeValidator(_listed, json_schema_input_type=dict[str, str | tuple[str, ...]]),
    AfterValidator(_checked),
]
