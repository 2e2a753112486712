"""Several processes of one launch, as `accelerate launch` and `torchrun` start them; alone, nothing here does anything.

Process 0 is the main one: it alone makes, writes and renames, and it alone is seen. What the processes tell each other
goes through processor memory, whatever their devices are, and may wait as long as one of them works alone: when one
ends, the launcher ends the others.
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

PATIENCE = timedelta(days=7)  # for a process that works alone
GOODBYE = timedelta(seconds=30)  # for one that tells of an error
ASKED, TOLD = "instil/asked", "instil/told"

T = TypeVar("T")


def count() -> int:
    """Processes of this launch."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def rank() -> int:
    """Number of this one, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the one that writes and is seen."""
    return rank() == 0


def wait() -> None:
    """Waits until all are here."""
    gather(None)


def gather(mine: T) -> list[T]:
    """What each process gives, in the order of their numbers.

    Args:
        mine: What this one gives; it can be pickled.
    """
    if count() == 1:
        return [mine]
    from torch import distributed

    given: list[Any] = [None] * count()
    distributed.all_gather_object(given, mine, group=_group())
    return given


def share(numbers: int) -> range:
    """Which of N rows are this process's."""
    return range(rank(), numbers, count())


def put_together(shares: Iterable[T]) -> list[T]:
    """What all processes made of their shares, in the order of the rows.

    Args:
        shares: What this one made of each row of its `share`; it can be pickled.
    """
    found = gather(list(shares))
    return [found[n % count()][n // count()] for n in range(sum(map(len, found)))]


def main_does(work: Callable[[], T]) -> T:
    """Lets the main process do something; all get what comes of it, be it an error of ours.

    Args:
        work: Gives what can be pickled.

    Raises:
        InstilError: `work` raised it.
    """
    if count() == 1:
        return work()
    from torch import distributed

    made: list[Any] = [None]
    if is_main():
        try:
            made = [(work(), None)]
        except InstilError as error:
            made = [(None, error)]
    distributed.broadcast_object_list(made, src=0, group=_group())
    value, failed = made[0]
    if failed is not None:
        raise failed
    return cast(T, value)


@contextmanager
def telling() -> Iterator[bool]:
    """Whether this process is to tell of an error that ends it: the first one is, the others wait until it has."""
    store = _store(GOODBYE) if count() > 1 else None
    mine = True
    if store is not None:
        with suppress(RuntimeError):  # who keeps the store is gone: it has told
            mine = store.add(ASKED, 1) == 1
            if not mine:
                store.wait([TOLD], GOODBYE)
    yield mine
    if mine and store is not None:
        with suppress(RuntimeError):
            store.set(TOLD, "")


def others_failed() -> bool:
    """Whether another process has told of an error; what this one met since, such as a closed connection, is its echo."""
    if count() == 1 or not _joined():
        return False
    store = _store(GOODBYE)
    try:
        return store is None or bool(store.check([ASKED]))
    except RuntimeError:
        return True


def leave() -> None:
    """Ends what joins the processes; all have done their work."""
    if count() > 1 and _joined():
        from torch import distributed

        distributed.destroy_process_group()
        _group.cache_clear()


def _joined() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def _join(patience: timedelta) -> None:
    """Meets the other processes, as accelerate's settings say, on the devices that there are.

    Raises:
        LaunchError: they cannot be met.
    """
    # Else transformers gives weights to one process alone; but every one is a teacher.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"  # checkpoints hold the adapter, whole
    if _joined():
        return
    import torch
    from accelerate.state import PartialState

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # accelerate tells each process's user how many threads it takes
        PartialState(cpu=not torch.accelerator.is_available(), timeout=patience)
    if not _joined():
        raise LaunchError(
            f"WORLD_SIZE says {count()} processes, and they are not joined",
            allowed="processes that `accelerate launch` or `torchrun` started",
            mend="start them so, or unset WORLD_SIZE and RANK",
        )


@cache
def _group() -> ProcessGroup:
    """What our messages go through; the devices' own group is for gradients."""
    from torch import distributed

    _join(PATIENCE)
    group: ProcessGroup = distributed.new_group(backend="gloo", timeout=PATIENCE)
    return group


def _store(patience: timedelta) -> Store | None:
    """What all processes can read and write without meeting; None where they do not meet."""
    from torch.distributed import distributed_c10d

    try:
        _join(patience)
        return distributed_c10d._get_default_store()
    except (InstilError, RuntimeError, ValueError):
        return None
