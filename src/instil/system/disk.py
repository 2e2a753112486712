"""The disk: paths from the home folder, writes that have arrived, and a disk that is full.

It loads nothing, so the command line is fast.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import platformdirs


def from_home(path: str | Path) -> Path:
    """Returns a path with its first part `~` replaced by the home folder.

    Shells do not do this in `--output=~/runs`.
    """
    path = Path(path)
    return path.expanduser() if path.parts[:1] == ("~",) else path


def sync(path: Path) -> None:
    """Waits until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full. Not all libraries raise OSError for this."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left" in str(error) or "file write failed" in str(error)


def cache_folder() -> Path:
    """The folder of converted models and kept texts; the environment variable `INSTIL_CACHE` changes it."""
    chosen = os.environ.get("INSTIL_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("instil")
