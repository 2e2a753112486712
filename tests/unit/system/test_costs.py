from __future__ import annotations

import time
from pathlib import Path

import pytest

from instil.system.costs import Recorder


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


def burn(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_what_is_measured_instead_is_taken_off_the_phase_that_it_stands_in() -> None:
    recorder = Recorder()
    start = time.perf_counter()
    with recorder.phase("train"):
        recorder.count("train", tokens=3, steps=1)
        burn(0.2)
        for _ in range(2):
            with recorder.instead("evaluate", of="train") as inner:
                inner.count("evaluate", tokens=5)
                burn(0.15)
        recorder.count("train", tokens=4, steps=1)
    whole = time.perf_counter() - start
    costs = recorder.costs()
    train, evaluate = costs["train"], costs["evaluate"]
    assert (train.tokens, train.steps, evaluate.tokens) == (7, 2, 10)
    assert evaluate.wall_seconds == pytest.approx(0.3, abs=0.1)
    assert train.wall_seconds == pytest.approx(0.2, abs=0.1)
    assert train.wall_seconds + evaluate.wall_seconds == pytest.approx(whole, abs=0.02)
    assert train.cpu_user_seconds >= 0
    assert train.peak_rss_mb > 10


def test_what_is_added_to_a_phase_that_runs_is_not_lost() -> None:
    recorder, other = Recorder(), Recorder()
    other.count("train", tokens=9, steps=2)
    with recorder.phase("train"):
        recorder.add("train", other.spent("train"))
        burn(0.1)
    cost = recorder.costs()["train"]
    assert (cost.tokens, cost.steps) == (9, 2)
    assert cost.wall_seconds >= 0.1
    assert cost.peak_rss_mb > 10
    assert other.spent("train")["wall_seconds"] == 0
