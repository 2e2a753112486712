from __future__ import annotations

import time
from pathlib import Path

import pytest

from instil.resources import Recorder


def test_a_phase_counts_wall_processor_and_memory() -> None:
    recorder = Recorder()
    with recorder.phase("train"):
        block = bytearray(200 * 2**20)
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass
        del block
    recorder.count("train", tokens=7, steps=2)
    recorder.count("train", tokens=3)
    cost = recorder.costs()["train"]
    assert 0.3 <= cost.wall_seconds < 2
    assert 0.15 <= cost.cpu_user_seconds + cost.cpu_system_seconds <= cost.wall_seconds * 2 + 0.1
    assert cost.peak_rss_mb > 200
    assert 0 < cost.mean_rss_mb <= cost.peak_rss_mb
    assert (cost.tokens, cost.steps) == (10, 2)


def test_a_phase_entered_twice_adds_up() -> None:
    recorder = Recorder()
    for _ in range(2):
        with recorder.phase("evaluate"):
            time.sleep(0.1)
    assert recorder.costs()["evaluate"].wall_seconds == pytest.approx(0.2, abs=0.08)


def test_a_run_that_goes_on_keeps_what_was_spent(tmp_path: Path) -> None:
    path = tmp_path / "phases.json"
    first = Recorder()
    first.keep_at(path)
    with pytest.raises(KeyboardInterrupt), first.phase("train"):
        time.sleep(0.1)
        first.count("train", steps=5)
        raise KeyboardInterrupt
    second = Recorder()
    with second.phase("load"):
        pass
    second.keep_at(path)
    with second.phase("train"):
        time.sleep(0.1)
    second.count("train", steps=5)
    costs = second.costs()
    assert costs["train"].wall_seconds == pytest.approx(0.2, abs=0.08)
    assert costs["train"].steps == 10
    assert "load" in costs
