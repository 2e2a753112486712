"""A verbalizer: each label's name with the surface forms that stand for it, `{"entailment": ("Yes", "yes")}`.

The first form is the one that demonstrations show. What needs a tokenizer is checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator


def _listed(value: object) -> object:
    """Takes one form without a list, and whole numbers as labels."""
    if not isinstance(value, Mapping):
        return value
    listed = {}
    for label, forms in value.items():
        forms = [forms] if isinstance(forms, str | bool) else forms
        if isinstance(label, bool) or (
            isinstance(forms, list | tuple) and any(isinstance(form, bool) for form in forms)
        ):
            raise ValueError(
                f"{label!r}: {forms!r} holds true or false, as YAML reads an unquoted Yes or No; "
                "put it in quotation marks"
            )
        listed[str(label) if isinstance(label, int) else label] = forms
    return listed


def _checked(value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    if len(value) < 2:
        raise ValueError("must name at least two labels")
    label_of: dict[str, str] = {}
    for label, forms in value.items():
        if not forms:
            raise ValueError(f"label {label!r} has no surface form")
        for form in forms:
            if not form or form != form.strip():
                raise ValueError(
                    f"label {label!r} has the surface form {form!r}: "
                    "it must not be empty nor begin or end with a space"
                )
            if label_of.setdefault(form, label) != label:
                raise ValueError(
                    f"labels {label_of[form]!r} and {label!r} share the surface form {form!r}: a "
                    "verbalizer that gives two labels the same form cannot tell them apart"
                )
    return value


Verbalizer = Annotated[
    dict[str, tuple[str, ...]],
    BeforeValidator(_listed, json_schema_input_type=dict[str, str | tuple[str, ...]]),
    AfterValidator(_checked),
]
