"""A run's folder: written under another name, renamed when it is whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from instil.errors import (
    DiskFullError,
    InstilError,
    OutputError,
    OutputExistsError,
    UnfinishedRunError,
)
from instil.system import processes

if TYPE_CHECKING:
    pass


class Staging:
    """The folder of a run in the making: `OUTPUT.partial`.

    Every file in it is written whole or not at all, so a later run with the same identity goes on from it. Of several
    processes, the main one makes it and names it.

    Args:
        output: The folder that the finished run will have.
        overwrite: Replace a finished run, or an unfinished one with other settings.

    Raises:
        OutputExistsError: there is something at `output`.
        OutputError: nothing can be written there.
    """

    def __init__(self, output: Path, *, overwrite: bool) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".partial")
        self._overwrite = overwrite
        if output.exists() and not overwrite:
            raise OutputExistsError(
                f"{output} exists", mend="pass --overwrite to replace it, or name another folder"
            )
        parent = _nearest_folder(output)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(
                f"{output} cannot be made",
                got=f"{parent} is {'not writable' if parent.is_dir() else 'a file'}",
                mend="name a folder that you may write to",
            )

    @contextmanager
    def open(self, identity: str, *, needed_bytes: int) -> Iterator[Path]:
        """Gives the folder to work in; an error of ours inside removes it, an interruption leaves it.

        Args:
            identity: Changes when anything changes that the run depends on.
            needed_bytes: Space that the run will take.

        Raises:
            UnfinishedRunError: an unfinished run with another identity is there.
            DiskFullError: there is not enough space.
        """
        processes.main_does(lambda: self._clear(identity, needed_bytes))
        try:
            processes.main_does(lambda: self._make(identity))
            yield self.path
        except InstilError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        except Exception as error:
            if not _is_disk_full(error):
                raise
            shutil.rmtree(self.path, ignore_errors=True)
            raise self._disk_full(needed_bytes) from None

    def finish(self, *, without: Sequence[str] = ()) -> None:
        """Gives the folder its name; what was there before goes only now.

        Args:
            without: Files and folders that only the making needed.
        """
        processes.main_does(lambda: self._finish(without))

    def _finish(self, without: Sequence[str]) -> None:
        old = self.output.with_name(self.output.name + ".old")
        _remove(old)
        if self.output.exists():
            self.output.rename(old)
        self.path.rename(self.output)
        for name in ("identity", *without):
            _remove(self.output / name)
        _remove(old)

    def _clear(self, identity: str, needed_bytes: int) -> None:
        """Makes way, and refuses what is in it or too little space."""
        mark = self.path / "identity"
        if self.path.exists() and (not mark.exists() or mark.read_text() != identity):
            if not self._overwrite:
                raise UnfinishedRunError(
                    f"{self.path} holds an unfinished run with other settings",
                    mend="repeat that run's command to finish it, pass --overwrite to discard it, or name another folder",
                )
            shutil.rmtree(self.path)
        self._check_space(needed_bytes)

    def _make(self, identity: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "identity").write_text(identity)

    def _check_space(self, needed_bytes: int) -> None:
        kept = sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())
        if shutil.disk_usage(_nearest_folder(self.output)).free < needed_bytes - kept:
            raise self._disk_full(needed_bytes)

    def _disk_full(self, needed_bytes: int) -> DiskFullError:
        return DiskFullError(
            f"not enough space for {self.output}",
            allowed=f"about {needed_bytes / 2**20:,.0f} MiB free",
            mend="free some space, or name a folder on another disk",
        )


def _nearest_folder(path: Path) -> Path:
    """The innermost part of a path that exists."""
    path = path.absolute().parent
    while not path.exists():
        path = path.parent
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_disk_full(error: Exception) -> bool:
    """Whether an error of any library says that the disk is full; not all raise OSError for it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left" in str(error) or "file write failed" in str(error)
