"""The check for accelerators: its cheapest parts run on a processor, and a failure is recorded."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "accelerator_check.py"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = importlib.util.spec_from_file_location("accelerator_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "accelerator_check", module)
    spec.loader.exec_module(module)
    log = logging.getLogger("instil.models.proof")
    before = (log.handlers, log.propagate)
    yield module
    log.handlers, log.propagate = before


def test_attention_and_the_store_are_right_on_a_processor(check: Any) -> None:
    for part in (check.attention, check.store):
        made = check.run(part, tiny=True)
        assert made["problems"] == []
        assert made["ok"]
        assert made["found"]


def test_all_parts_together_take_at_most_eight_minutes(check: Any) -> None:
    assert sum(check.PARTS.values()) <= 8 * 60


def test_a_part_that_fails_is_recorded(check: Any) -> None:
    def broken(setting: Any) -> Any:
        raise ValueError("no such kernel\nmore")

    made = check.run(broken, tiny=True)
    assert (made["ok"], made["problems"]) == (False, ["ValueError: no such kernel"])
    found = check.Found()
    found.at_most("error", float("nan"), 1.0)
    found.at_most("error", 0.5, 1.0)
    assert found.problems == ["error is nan, at most 1 is right"]
