"""Helps the processes of one launch (`accelerate launch` or `torchrun`) to work together.

Process 0 is the main process: only it writes files and prints. Messages between the processes go
through CPU memory. They have a long timeout, because a process may work alone for a long time. If
a process ends with an error, the launcher ends the others. With a single process, these functions
do nothing special.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from instil.errors import InstilError, LaunchError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

PATIENCE = timedelta(days=7)  # timeout while a process works alone
GOODBYE = timedelta(seconds=30)  # timeout while a process prints an error
ASKED, TOLD = "instil/asked", "instil/told"  # keys: a process wants to print; it has printed

T = TypeVar("T")


def count() -> int:
    """Returns the number of processes of this launch."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def rank() -> int:
    """Returns the number of this process, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the main process, which writes and prints."""
    return rank() == 0


def split_layers() -> bool:
    """Whether the processes split the layers of the student among them (FSDP)."""
    if "ACCELERATE_USE_FSDP" not in os.environ:
        return False
    from accelerate.utils import parse_flag_from_env

    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def join() -> None:
    """Connects to the other processes. Each process then has a device of its own.

    Raises:
        LaunchError: they cannot be reached.
    """
    if count() > 1:
        _join(PATIENCE)


def wait() -> None:
    """Waits until all processes have called this function."""
    gather(None)


def gather(mine: T) -> list[T]:
    """Returns the values of all processes, in the order of their numbers.

    Args:
        mine: Value of this process. It must be picklable.
    """
    if count() == 1:
        return [mine]
    from torch import distributed

    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, mine, group=_group())
    return values


def share(numbers: int) -> range:
    """Returns the numbers of this process's rows, out of N rows."""
    return range(rank(), numbers, count())


def put_together(shares: Iterable[T]) -> list[T]:
    """Returns the results of all processes, in the order of the rows.

    Args:
        shares: Results of this process, one per row of its `share`. They must be picklable.
    """
    results = gather(list(shares))
    return [results[n % count()][n // count()] for n in range(sum(map(len, results)))]


def main_does(work: Callable[[], T]) -> T:
    """Runs a function in the main process, and returns its result in all processes.

    Args:
        work: Function to run. Its result must be picklable.

    Raises:
        InstilError: `work` raised it. All processes raise it.
    """
    if count() == 1:
        return work()
    from torch import distributed

    outcome: list[Any] = [None]
    if is_main():
        try:
            outcome = [(work(), None)]
        except InstilError as error:
            outcome = [(None, error)]
    distributed.broadcast_object_list(outcome, src=0, group=_group())
    value, failure = outcome[0]
    if failure is not None:
        raise failure
    return cast(T, value)


@contextmanager
def telling() -> Iterator[bool]:
    """Yields whether this process should print the error that ends it.

    The first process that asks prints. The others wait until it has printed.
    """
    store = _store(GOODBYE) if count() > 1 else None
    first = True
    if store is not None:
        with suppress(RuntimeError):  # the process that holds the store has printed and ended
            first = store.add(ASKED, 1) == 1
            if not first:
                store.wait([TOLD], GOODBYE)
    yield first
    if first and store is not None:
        with suppress(RuntimeError):
            store.set(TOLD, "")


def others_failed() -> bool:
    """Whether another process has printed an error.

    An error of this process, such as a closed connection, is then only a consequence of it.
    """
    if count() == 1 or not _joined():
        return False
    store = _store(GOODBYE)
    try:
        return store is None or bool(store.check([ASKED]))
    except RuntimeError:
        return True


def leave() -> None:
    """Closes the connection between the processes, after all have finished."""
    if count() > 1 and _joined():
        from torch import distributed

        distributed.destroy_process_group()
        _group.cache_clear()


def _joined() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def _join(patience: timedelta) -> None:
    """Connects to the other processes, with the settings of accelerate.

    Raises:
        LaunchError: they cannot be reached.
    """
    # Otherwise only one process loads the weights, but each process needs a teacher.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"  # checkpoints hold the full adapter
    if _joined():
        return
    import torch
    from accelerate.state import PartialState

    with warnings.catch_warnings():
        # accelerate warns in each process about its number of threads.
        warnings.simplefilter("ignore")
        PartialState(cpu=not torch.accelerator.is_available(), timeout=patience)
    if not _joined():
        raise LaunchError(
            f"WORLD_SIZE is {count()}, but the processes are not connected",
            allowed="processes that `accelerate launch` or `torchrun` has started",
            mend="start them with one of these, or unset WORLD_SIZE and RANK",
        )


@cache
def _group() -> ProcessGroup:
    """Returns the process group for messages. Gradients use the group of the devices."""
    from torch import distributed

    _join(PATIENCE)
    group: ProcessGroup = distributed.new_group(backend="gloo", timeout=PATIENCE)
    return group


def _store(patience: timedelta) -> Store | None:
    """Returns a store that each process can use without the others; None if not connected."""
    from torch.distributed import distributed_c10d

    try:
        _join(patience)
        return distributed_c10d._get_default_store()
    except (InstilError, RuntimeError, ValueError):
        return None
