from __future__ import annotations

import pytest

from instil import tasks
from instil.tasks.metrics import METRICS, exact_match


def test_exact_match_minds_case_but_not_outer_space() -> None:
    assert exact_match(" Paris\n", "Paris")
    assert not exact_match("paris", "Paris")


def test_exact_match_does_not_mind_the_form_of_a_character() -> None:
    assert exact_match("Caf\u00e9", "Cafe\u0301")
    assert not exact_match("Cafe", "Cafe\u0301")
    assert not exact_match("10²", "102")


def test_metrics_are_known_by_name() -> None:
    assert METRICS["exact_match"] is exact_match
    assert METRICS["number"]("so it is 6\n#### 6", "#### 6.0")
    assert not METRICS["number"]("#### 7", "#### 6")


def test_a_metric_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.metrics, "METRICS", dict(METRICS))

    @tasks.metric("same_length")
    def same_length(written: str, gold: str) -> bool:
        return len(written) == len(gold)

    assert tasks.metrics.METRICS["same_length"] is same_length
    assert tasks.metric("same_length")(same_length) is same_length
    with pytest.raises(ValueError, match="already a metric 'same_length'"):
        tasks.metric("same_length")(exact_match)
