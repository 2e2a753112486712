"""The metrics, one idea a file, and the rules that are made of them.

To add a metric, write a file with a function like those here, and import it below. From outside, use
`instil.metrics.metric`, an entry point of the group `instil.metrics`, or `python:MODULE.FUNCTION`.
"""

from instil.metrics import (
    choice,
    chrf,
    contains,
    exact,
    json_text,
    language,
    normalised,
    number,
    refuse,
    regex,
    rouge_l,
    starts_with,
    token_f1,
    tool_call,
    words,
)
from instil.metrics.registry import METRICS, Metric, comparing, find, metric

__all__ = [
    "METRICS",
    "Metric",
    "choice",
    "chrf",
    "comparing",
    "contains",
    "exact",
    "find",
    "json_text",
    "language",
    "metric",
    "normalised",
    "number",
    "refuse",
    "regex",
    "rouge_l",
    "starts_with",
    "token_f1",
    "tool_call",
    "words",
]
