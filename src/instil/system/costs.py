"""What each phase costs: wall time, processor time, memory, tokens, steps."""

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
        """Adds another one in place: a phase that is being measured writes to this very one."""
        for field, theirs in asdict(other).items():
            if theirs:  # a sampler may be at work on the others
                mine = getattr(self, field)
                setattr(self, field, max(mine, theirs) if field in PEAKS else mine + theirs)


@dataclass(frozen=True)
class Cost:
    """What a phase cost; memory in MiB, that of an accelerator None on a processor."""

    wall_seconds: float
    cpu_user_seconds: float
    cpu_system_seconds: float
    peak_rss_mb: float
    mean_rss_mb: float
    peak_allocated_mb: float | None
    peak_reserved_mb: float | None
    tokens: int
    steps: int


class Recorder:
    """Adds up costs a phase; a phase may be entered several times, also by a run that is resumed."""

    def __init__(self) -> None:
        self.reused: set[Phase] = set()
        """Phases of which something was there already; its cost is in the sums all the same."""
        self._process = psutil.Process()
        self._tallies: dict[Phase, _Tally] = {}
        self._path: Path | None = None

    def keep_at(self, path: Path) -> None:
        """Keeps the sums in a file, and takes over what an interrupted run has left there; of several processes, the main one."""
        if not processes.is_main():
            return
        self._path = path
        if path.exists():
            for name, earlier in json.loads(path.read_text(encoding="utf-8")).items():
                self._tally(name).include(_Tally(**earlier))

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Measures what runs inside; memory that was freed before is not counted, for the system gets it back first."""
        _give_back()
        tally = self._tally(name)
        stop = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(tally, stop), daemon=True)
        before, start = self._process.cpu_times(), time.perf_counter()
        device = _device_memory()
        if device is not None:
            device.reset_peak_memory_stats()
        sampler.start()
        try:
            yield
        finally:
            stop.set()
            sampler.join()
            after = self._process.cpu_times()
            if device is not None:
                peaks = (device.max_memory_allocated(), device.max_memory_reserved())
                tally.peak_allocated_bytes = max(tally.peak_allocated_bytes, peaks[0])
                tally.peak_reserved_bytes = max(tally.peak_reserved_bytes, peaks[1])
            tally.wall_seconds += time.perf_counter() - start
            tally.cpu_user_seconds += after.user - before.user
            tally.cpu_system_seconds += after.system - before.system
            self._keep()

    @contextmanager
    def instead(self, name: Phase, *, of: Phase) -> Iterator[Recorder]:
        """Measures what runs inside as one phase, and takes it off another one, within which it stands.

        Gives the recorder that counts what runs inside.
        """
        inner = Recorder()
        with inner.phase(name):
            yield inner
        spent = inner.spent(name)
        self.add(name, spent)
        taken = ("wall_seconds", "cpu_user_seconds", "cpu_system_seconds")
        self.add(of, {field: -spent[field] for field in taken})

    def add(self, name: Phase, spent: dict[str, float]) -> None:
        """Adds what another recorder measured, as its `spent` gave it."""
        self._tally(name).include(_Tally(**spent))  # type: ignore[arg-type]

    def put(self, name: Phase, spent: dict[str, float]) -> None:
        """Puts what another recorder measured, as its `spent` gave it, in place of what was known of a phase."""
        self._tallies[name] = _Tally(**spent)  # type: ignore[arg-type]

    def spent(self, name: Phase) -> dict[str, float]:
        """The sums of a phase, to be stored and added again."""
        return asdict(self._tally(name))

    def add_other_processes(self) -> None:
        """Adds what the other processes of a launch have measured, but for time and steps, which all have in common."""
        _, *others = processes.gather(self._tallies)
        if not processes.is_main() or not any(others):
            return
        for name, theirs in ((n, tally) for other in others for n, tally in other.items()):
            self._tally(name).include(replace(theirs, wall_seconds=0.0, steps=0))
        self._keep()

    def count(self, name: Phase, *, tokens: int = 0, steps: int = 0) -> None:
        """Adds token positions and steps to a phase."""
        self._tally(name).tokens += tokens
        self._tally(name).steps += steps

    def advance(self, name: Phase, show: Callable[[int], None]) -> Callable[[int, int], None]:
        """Called for each batch of rows: it shows the rows and counts one step with its tokens.

        Args:
            name: Of the phase.
            show: Shows N more rows.
        """

        def advance(rows: int, tokens: int) -> None:
            show(rows)
            self.count(name, tokens=tokens, steps=int(rows > 0))

        return advance

    def costs(self) -> dict[Phase, Cost]:
        """The sums so far."""
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

    def _keep(self) -> None:
        if self._path is not None and self._path.parent.exists():
            tallies = {name: asdict(tally) for name, tally in self._tallies.items()}
            with written_whole(self._path) as work:
                work.write_text(json.dumps(tallies), encoding="utf-8")

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
    """Hands the freed memory that the C library holds on to back to the system, where it can: some 500 MB after a teacher."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _device_memory() -> Any:
    """What counts the accelerator's memory; None on a machine without one."""
    torch = sys.modules.get("torch")  # costs are measured without torch, too
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
