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

from instil.system import processes

T = TypeVar("T")
R = TypeVar("R")

MOST = 8
"""Copies at the same time. Each of them needs memory of its own."""

_work: Callable[[Any], Any] | None = None


def copies() -> int:
    """How many copies work at the same time; less than 2 if the caller does the work itself."""
    if sys.platform != "linux":
        return 1
    return min(MOST, len(os.sched_getaffinity(0)) // processes.count())


def shared(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R | None]:
    """Does work on items in copies of this process.

    A copy sees this process as it is now. Memory that both then write to is needed twice, so that
    this process should do little else meanwhile, and call this function for a part of the work at
    a time.

    Args:
        work: The work. Its result is sent through a pipe.
        items: What it is done on, sent through a pipe.

    Yields:
        The results, in the order of the items; None where a copy failed.
    """
    global _work
    done = 0
    try:
        many, kind = min(copies(), len(items)), multiprocessing.get_context("fork")
        with ProcessPoolExecutor(many, kind, _begin) as pool:
            _work = work
            with _quiet():
                results = pool.map(_tried, items)
            for result in results:
                yield cast("R | None", result)
                done += 1
    except (BrokenProcessPool, OSError):  # for example too little memory for a copy
        yield from [None] * (len(items) - done)
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


def _tried(item: Any) -> Any:
    assert _work is not None
    try:
        return _work(item)
    except Exception:  # the caller does the work again, and raises it where it can be handled
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
