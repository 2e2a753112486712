"""The templates of the pages, and what they may call."""

from __future__ import annotations

import base64
import hashlib
import json

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def templates() -> Environment:
    """Templates in which every text is escaped."""
    jinja = Environment(
        loader=PackageLoader("instil.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Only what matplotlib wrote is let through as markup, and it escapes the text that it draws.
    jinja.filters["svg"] = lambda figure: Markup(figure.svg)
    jinja.filters["digest"] = _digest
    jinja.filters["json"] = as_json
    return jinja


def as_json(value: object) -> str:
    """A value as JSON, letters beyond ASCII as they are."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _digest(script: str) -> str:
    """The hash under which the page's policy lets its own script run, and no other."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
