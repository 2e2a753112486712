"""Colour, marker and dash of each group in the figures."""

from __future__ import annotations

from instil.methods import MethodName
from instil.report.charts import Pen
from instil.report.drawing import Ink
from instil.report.groups import Control, Group

INKS: dict[MethodName, Ink] = {
    "zero_shot": "zero-shot",
    "in_context": "in-context",
    "vanilla_fine_tuning": "vanilla",
    "pattern_fine_tuning": "pattern",
    "pattern_fine_tuning_in_context": "pattern-context",
    "distillation": "distilled",
}
MARKERS: dict[MethodName, str] = {
    "zero_shot": "v",
    "in_context": "s",
    "vanilla_fine_tuning": "P",
    "pattern_fine_tuning": "D",
    "pattern_fine_tuning_in_context": "X",
    "distillation": "o",
}
TUNING_PENS: dict[str, Pen] = {
    "full": Pen("in-context", "s", "-"),
    "lora": Pen("distilled", "o", "--"),
    "bitfit": Pen("zero-shot", "v", ":"),
}
"""Pens of a figure whose lines are the tunings of one method."""
DASHES = {"full": "-", "lora": "--", "bitfit": ":"}
CONTROL_MARKERS: dict[Control, str] = {"zero-shot teacher": "^", "shuffled answers": "<"}
CONTROL_DASHES: dict[Control, str] = {"zero-shot teacher": "--", "shuffled answers": ":"}


def pen(group: Group, *, tuned: bool = False, along_k: bool = False) -> Pen:
    """The pen of a group's line.

    Args:
        group: The group.
        tuned: Whether the figure has several tunings, which then differ in their dashes.
        along_k: Whether k is the axis, so that k = 0 needs no pen of its own.
    """
    marker = MARKERS[group.method]
    dash = DASHES.get(group.tuning or "", "-") if tuned else "-"
    control = None if along_k and group.control == "zero-shot teacher" else group.control
    if control:
        marker = CONTROL_MARKERS[control]
        dash = dash if tuned else CONTROL_DASHES[control]
    return Pen(INKS[group.method], marker, dash)
