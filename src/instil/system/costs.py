"""Measures the cost of each phase: wall time, CPU time, memory, tokens and steps."""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from instil.methods import Phase
from instil.system import processes
from instil.system.files import written_whole

SAMPLE_SECONDS = 0.05
MEBIBYTE = 2**20
PEAKS = ("peak_rss_bytes", "peak_allocated_bytes", "peak_reserved_bytes")


@dataclass
class _Tally:
    wall_seconds: float = 0.0
    cpu_user_seconds: float = 0.0
    cpu_system_seconds: float = 0.0
    peak_rss_bytes: int = 0
    peak_allocated_bytes: int = 0
    peak_reserved_bytes: int = 0
    rss_byte_samples: int = 0
    samples: int = 0
    tokens: int = 0
    steps: int = 0

    def include(self, other: _Tally) -> None:
        """Adds another tally in place, because a running phase writes to this object."""
        for field, theirs in asdict(other).items():
            if theirs:  # a running sampler may write to the other fields
                mine = getattr(self, field)
                setattr(self, field, max(mine, theirs) if field in PEAKS else mine + theirs)


@dataclass(frozen=True)
class Cost:
    """The cost of a phase. Memory is in MiB. Accelerator memory is None on a CPU."""

    wall_seconds: float
    cpu_user_seconds: float
    cpu_system_seconds: float
    peak_rss_mb: float
    mean_rss_mb: float
    peak_allocated_mb: float | None
    peak_reserved_mb: float | None
    tokens: int
    steps: int


class _Running:
    """A phase that runs. Its cost until now is added to a tally."""

    def __init__(self, tally: _Tally) -> None:
        self._tally = tally
        self._process = psutil.Process()
        self._wall, self._cpu = time.perf_counter(), self._process.cpu_times()

    def add_up(self) -> None:
        """Adds what was spent since the last call."""
        wall, cpu = time.perf_counter(), self._process.cpu_times()
        self._tally.wall_seconds += wall - self._wall
        self._tally.cpu_user_seconds += cpu.user - self._cpu.user
        self._tally.cpu_system_seconds += cpu.system - self._cpu.system
        self._wall, self._cpu = wall, cpu

    def note_peaks(self, device: Any) -> None:
        """Notes the accelerator's peaks since they were last reset."""
        tally = self._tally
        tally.peak_allocated_bytes = max(tally.peak_allocated_bytes, device.max_memory_allocated())
        tally.peak_reserved_bytes = max(tally.peak_reserved_bytes, device.max_memory_reserved())


_RUNNING: list[_Running] = []
"""The phases that run in this process, the innermost one last."""


class Recorder:
    """Adds up the costs of each phase. A phase can be entered again, also after a resume.

    A run that is killed loses the work since its last checkpoint. Its costs are lost with it, if
    `keep` is called exactly when work is safe on disk. So a resumed run costs what it would have
    cost without the interruption.
    """

    def __init__(self) -> None:
        self.reused: set[Phase] = set()
        """Phases that reused stored work. The cost of that work is included in the sums."""
        self._process = psutil.Process()
        self._tallies: dict[Phase, _Tally] = {}
        self._put: set[Phase] = set()
        self._path: Path | None = None

    def keep_at(self, path: Path) -> None:
        """Names the file for `keep`, and adds the sums that an interrupted run stored there.

        Loading is done again, so its earlier cost is left out. If there are several processes,
        only the main one has a file.
        """
        if not processes.is_main():
            return
        self._path = path
        if path.exists():
            for name, earlier in json.loads(path.read_text(encoding="utf-8")).items():
                if name != "load":
                    self._tally(name).include(_Tally(**earlier))

    def keep(self) -> None:
        """Stores the sums until now in the file, if there is one. Call it when work is on disk."""
        for running in _RUNNING:
            running.add_up()
        _take_peaks()
        if self._path is not None and self._path.parent.exists():
            tallies = {name: asdict(tally) for name, tally in self._tallies.items()}
            with written_whole(self._path) as work:
                work.write_text(json.dumps(tallies), encoding="utf-8")

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Measures the cost of the block.

        Memory that was freed earlier is first returned to the system, so that it is not counted.
        """
        _give_back()
        tally = self._tally(name)
        stop = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(tally, stop), daemon=True)
        _take_peaks()  # until now, they are those of the phase around this one
        running = _Running(tally)
        _RUNNING.append(running)
        sampler.start()
        try:
            yield
        finally:
            stop.set()
            sampler.join()
            running.add_up()
            _take_peaks()
            _RUNNING.remove(running)

    @contextmanager
    def instead(self, name: Phase, *, of: Phase) -> Iterator[Recorder]:
        """Measures the block as one phase, and subtracts its cost from the phase around it.

        Args:
            name: Phase of the block.
            of: Phase around the block.

        Yields:
            The recorder for the block.
        """
        inner = Recorder()
        with inner.phase(name):
            yield inner
        spent = inner.spent(name)
        self.add(name, spent)
        taken = ("wall_seconds", "cpu_user_seconds", "cpu_system_seconds")
        self.add(of, {field: -spent[field] for field in taken})

    def add(self, name: Phase, spent: dict[str, float]) -> None:
        """Adds the sums of another recorder to a phase. They come from its `spent`."""
        self._tally(name).include(_Tally(**spent))  # type: ignore[arg-type]

    def put(self, name: Phase, spent: dict[str, float]) -> None:
        """Adds what a store has cost.

        The first time, the cost replaces what an interrupted run has counted for the phase.

        Args:
            name: Name of the phase.
            spent: The sums of another recorder, from its `spent`.
        """
        if name not in self._put:
            self._put.add(name)
            self._tallies[name] = _Tally()
        self.add(name, spent)

    def spent(self, name: Phase) -> dict[str, float]:
        """Returns the sums of a phase, which can be stored and added again."""
        return asdict(self._tally(name))

    def add_other_processes(self) -> None:
        """Adds the costs of the other processes of a launch.

        Wall time and steps are not added, because they are the same in all processes.
        """
        _, *others = processes.gather(self._tallies)
        if not processes.is_main() or not any(others):
            return
        for name, theirs in ((n, tally) for other in others for n, tally in other.items()):
            self._tally(name).include(replace(theirs, wall_seconds=0.0, steps=0))
        self.keep()

    def count(self, name: Phase, *, tokens: int = 0, steps: int = 0) -> None:
        """Adds token positions and steps to a phase."""
        self._tally(name).tokens += tokens
        self._tally(name).steps += steps

    def advance(self, name: Phase, show: Callable[[int], None]) -> Callable[[int, int], None]:
        """Returns a function to call after each batch. It shows progress and counts one step.

        Args:
            name: Phase to which the step and its tokens are added.
            show: Shows that N more rows are done.
        """

        def advance(rows: int, tokens: int) -> None:
            show(rows)
            self.count(name, tokens=tokens, steps=int(rows > 0))

        return advance

    def costs(self) -> dict[Phase, Cost]:
        """Returns the cost of each phase so far."""
        return {
            name: Cost(
                wall_seconds=tally.wall_seconds,
                cpu_user_seconds=tally.cpu_user_seconds,
                cpu_system_seconds=tally.cpu_system_seconds,
                peak_rss_mb=tally.peak_rss_bytes / MEBIBYTE,
                peak_allocated_mb=tally.peak_allocated_bytes / MEBIBYTE or None,
                peak_reserved_mb=tally.peak_reserved_bytes / MEBIBYTE or None,
                mean_rss_mb=tally.rss_byte_samples / max(tally.samples, 1) / MEBIBYTE,
                tokens=tally.tokens,
                steps=tally.steps,
            )
            for name, tally in self._tallies.items()
        }

    def _tally(self, name: Phase) -> _Tally:
        return self._tallies.setdefault(name, _Tally())

    def _sample(self, tally: _Tally, stop: threading.Event) -> None:
        while True:
            rss = self._process.memory_info().rss
            tally.peak_rss_bytes = max(tally.peak_rss_bytes, rss)
            tally.rss_byte_samples += rss
            tally.samples += 1
            if stop.wait(SAMPLE_SECONDS):
                return


def _give_back() -> None:
    """Returns freed memory to the system. After a teacher this is about 500 MB."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _take_peaks() -> None:
    """Notes the accelerator's peaks for the innermost phase that runs, and resets them."""
    if (device := _device_memory()) is not None:
        for running in _RUNNING[-1:]:
            running.note_peaks(device)
        device.reset_peak_memory_stats()


def _device_memory() -> Any:
    """Returns the module that measures the accelerator's memory; None without an accelerator."""
    torch = sys.modules.get("torch")  # this module also works without torch
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
