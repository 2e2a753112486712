from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from instil.system import costs
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


def test_a_killed_run_has_spent_what_its_last_checkpoint_had(tmp_path: Path) -> None:
    path = tmp_path / "phases.json"
    first = Recorder()
    first.keep_at(path)
    with first.phase("load"):
        time.sleep(0.05)
    with pytest.raises(KeyboardInterrupt), first.phase("train"):
        time.sleep(0.2)
        first.count("train", steps=5)
        first.keep()  # a checkpoint
        time.sleep(0.3)
        first.count("train", steps=2)
        raise KeyboardInterrupt  # what came after it is lost, and will be done again
    second = Recorder()
    with second.phase("load"):
        pass
    second.keep_at(path)
    with second.phase("train"):
        time.sleep(0.2)
        second.count("train", steps=5)
    found = second.costs()
    assert found["train"].steps == 10
    assert 0.4 <= found["train"].wall_seconds < 0.68
    assert found["load"].wall_seconds < 0.05


def test_keeping_twice_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "phases.json"
    recorder = Recorder()
    recorder.keep_at(path)
    with recorder.phase("train"):
        burn(0.1)
        recorder.keep()
        burn(0.1)
        recorder.keep()
    cost = recorder.costs()["train"]
    kept = json.loads(path.read_text())["train"]
    assert 0.2 <= kept["wall_seconds"] <= cost.wall_seconds < 0.5
    assert kept["cpu_user_seconds"] <= cost.cpu_user_seconds + 1e-9


def test_a_recorder_without_a_file_keeps_nothing(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.count("train", steps=1)
    recorder.keep()
    assert list(tmp_path.iterdir()) == []


class Accelerator:
    """Stands for `torch.cuda`: remembers the highest memory since the last reset, in MiB."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def use(self, mebibytes: int) -> None:
        self.now = mebibytes
        self.peak = max(self.peak, self.now)

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.now

    def max_memory_allocated(self) -> int:
        return self.peak * 2**20

    def max_memory_reserved(self) -> int:
        return 2 * self.peak * 2**20


def test_a_phase_inside_another_leaves_it_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    device, recorder = Accelerator(), Recorder()
    monkeypatch.setattr(costs, "_device_memory", lambda: device)
    with recorder.phase("train"):
        device.use(900)
        device.use(100)
        for _ in range(2):
            with recorder.instead("evaluate", of="train"):
                device.use(300)
                device.use(100)
        device.use(200)
    found = recorder.costs()
    assert (found["train"].peak_allocated_mb, found["train"].peak_reserved_mb) == (900, 1800)
    assert found["evaluate"].peak_allocated_mb == 300


def test_the_peak_of_an_inner_phase_is_not_that_of_the_outer_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, recorder = Accelerator(), Recorder()
    monkeypatch.setattr(costs, "_device_memory", lambda: device)
    with recorder.phase("train"):
        device.use(200)
        with recorder.instead("evaluate", of="train"):
            device.use(900)
            device.use(150)
    assert recorder.costs()["train"].peak_allocated_mb == 200


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
    found = recorder.costs()
    train, evaluate = found["train"], found["evaluate"]
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
