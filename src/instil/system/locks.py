"""Locks between processes. The system releases them when a process ends, even if it is killed."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from instil.errors import OutputError

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # errors of a mount without locks


def hold(path: Path, *, of: Path, wait: bool = False) -> AbstractContextManager[object]:
    """Locks a file until the returned context ends. Its folder is created if necessary.

    On a mount that has no locks, it locks nothing.

    Args:
        path: The file. It is created if necessary, and it is not removed.
        of: What the lock protects, for the error message.
        wait: Wait while another process holds the lock.

    Raises:
        OutputError: another process holds the lock, and `wait` is false; or the file cannot be
            created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path).acquire(blocking=wait)
    except Timeout:
        raise OutputError(
            f"another process works on {of}", mend="wait until it ends, or name another folder"
        ) from None
    except NotImplementedError:
        return nullcontext()
    except OSError as error:
        if error.errno in NO_LOCKS:
            return nullcontext()
        raise OutputError(
            f"{of} cannot be written",
            got=error.strerror or str(error),
            mend="name a folder that you may write to",
        ) from None
