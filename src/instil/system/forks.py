"""Shares work among copies of this process, which read its memory and need no start of their own.

Only Linux copies a process safely. Elsewhere, and where a copy fails, the caller does the work.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar, cast

R = TypeVar("R")

MOST = 8
"""Copies at the same time. Each of them needs memory of its own."""
SHARE = 512
"""Items of a share of the work."""
ROUND = 64
"""Shares for which this process is copied once."""
MANY = 4 * SHARE
"""Number of items from which copies help."""

_work: Callable[[range], Any] | None = None


def copies() -> int:
    """How many copies work at the same time; less than 2 if the caller does the work itself."""
    if sys.platform != "linux":
        return 1
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of a launch on this machine
    return min(MOST, len(os.sched_getaffinity(0)) // beside)


def shares(work: Callable[[range], R], count: int) -> Iterator[R]:
    """Does work on shares of some items, in copies of this process if there are many items.

    A copy sees this process as it is, and memory that one of the two then changes is needed twice.
    So a copy works only for some time.

    Args:
        work: Works on the items with these numbers. Its result is sent through a pipe.
        count: Number of items.

    Yields:
        The results of all shares, in their order.
    """
    parts = [range(start, min(start + SHARE, count)) for start in range(0, count, SHARE)]
    if count < MANY or copies() < 2:
        yield from map(work, parts)
        return
    for start in range(0, len(parts), ROUND):
        round_of = parts[start : start + ROUND]
        for part, made in zip(round_of, _shared(work, round_of), strict=True):
            # If a copy failed, its work is done again here, where an error can be handled.
            yield work(part) if made is None else made


def _shared(work: Callable[[range], R], parts: Sequence[range]) -> Iterator[R | None]:
    """The results of copies of this process; None where one failed."""
    global _work
    done = 0
    try:
        many, kind = min(copies(), len(parts)), multiprocessing.get_context("fork")
        with ProcessPoolExecutor(many, kind, _begin) as pool:
            _work = work
            with _quiet():
                results = pool.map(_tried, parts)
            for result in results:
                yield cast("R | None", result)
                done += 1
    except (BrokenProcessPool, OSError):  # for example too little memory for a copy
        yield from [None] * (len(parts) - done)
    finally:
        _work = None


def _begin() -> None:
    """Prepares a copy: the process that it copies handles signals, and may end without a word."""
    gc.freeze()  # what the copy does not write to is not stored twice
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=[multiprocessing.parent_process()], daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _tried(part: range) -> Any:
    assert _work is not None
    try:
        return _work(part)
    except Exception:
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of threads: a copy uses neither those of tokenizers nor those of torch."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
