"""The folder of a run. It is written under another name and renamed when it is complete."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from instil.errors import (
    DiskFullError,
    InstilError,
    OutputError,
    OutputExistsError,
    UnfinishedRunError,
)
from instil.system import processes


class Staging:
    """The folder of an unfinished run: `OUTPUT.partial`.

    Every file in it is written completely or not at all, so a later run with the same identity
    can resume from it. If there are several processes, the main one creates and renames it.

    Args:
        output: Folder of the finished run.
        overwrite: Replace a finished run, or an unfinished run with other settings.

    Raises:
        OutputExistsError: `output` already exists.
        OutputError: the folder cannot be written.
    """

    def __init__(self, output: Path, *, overwrite: bool) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".partial")
        self._overwrite = overwrite
        if output.exists() and not overwrite:
            raise OutputExistsError(
                f"{output} already exists",
                mend="pass --overwrite to replace it, or name another folder",
            )
        parent = _nearest_folder(output)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(
                f"{output} cannot be created",
                got=f"{parent} is {'not writable' if parent.is_dir() else 'a file'}",
                mend="name a folder that you may write to",
            )

    @contextmanager
    def open(self, identity: str, *, needed_bytes: int) -> Iterator[Path]:
        """Yields the folder to work in.

        An `InstilError` in the block removes the folder. An interruption leaves it as it is.

        Args:
            identity: Digest of everything that the run depends on.
            needed_bytes: Disk space that the run needs.

        Raises:
            UnfinishedRunError: the folder holds an unfinished run with another identity.
            DiskFullError: there is not enough disk space.
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
        """Renames the folder to its final name. An earlier run is removed only now.

        Args:
            without: Names of temporary files and folders to remove.
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
        """Removes an unfinished run if allowed, and checks the disk space."""
        mark = self.path / "identity"
        if self.path.exists() and (not mark.exists() or mark.read_text() != identity):
            if not self._overwrite:
                raise UnfinishedRunError(
                    f"{self.path} holds an unfinished run with other settings",
                    mend="repeat the command of that run to finish it, pass --overwrite to discard "
                    "it, or name another folder",
                )
            shutil.rmtree(self.path)
        self._check_space(needed_bytes)

    def _make(self, identity: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "identity").write_text(identity)

    def _check_space(self, needed_bytes: int) -> None:
        written = sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())
        if shutil.disk_usage(_nearest_folder(self.output)).free < needed_bytes - written:
            raise self._disk_full(needed_bytes)

    def _disk_full(self, needed_bytes: int) -> DiskFullError:
        return DiskFullError(
            f"not enough disk space for {self.output}",
            allowed=f"about {needed_bytes / 2**20:,.0f} MiB of free space",
            mend="free some space, or name a folder on another disk",
        )


def _nearest_folder(path: Path) -> Path:
    """Returns the nearest parent of a path that exists."""
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
    """Whether an error means that the disk is full. Not all libraries raise OSError for this."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left" in str(error) or "file write failed" in str(error)
