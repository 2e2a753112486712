"""The folder of a run. It is written under another name and renamed when it is complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from instil.errors import (
    DiskFullError,
    InstilError,
    NotFiniteLossError,
    OutputError,
    OutputExistsError,
    UnfinishedRunError,
)
from instil.results.schema import RESULTS
from instil.system import processes
from instil.system.disk import is_disk_full
from instil.system.files import written_whole
from instil.system.locks import hold

SCRATCH = "scratch"  # files from which an interrupted cell resumes; removed at the end
CHECKPOINTS = "checkpoints"  # of the training; removed at the end
TARGETS = "targets"  # in `SCRATCH`: what the teacher wrote and predicted, named by its content
IDENTITY, LOCK = "identity", ".lock"
REPLACED = "replaced"  # the earlier run, while the new one takes its name


class Staging:
    """The folder of an unfinished run: `OUTPUT.partial`.

    Every file in it is written completely or not at all, so a later run with the same identity
    can resume from it. The teacher's work is named by its content, so a run with another identity
    uses it too. One launch at a time works in the folder. If there are several processes, the main
    one locks, creates and renames it.

    Args:
        output: Folder of the finished run. If it is a link, the folder that it names is meant.
        overwrite: Replace a finished run, or an unfinished run with other settings.
        reads: Files and folders that the run reads. They must not be in `output`.

    Raises:
        OutputExistsError: `output` already exists and may not be replaced.
        OutputError: the folder cannot be written, or another process works on it.
    """

    def __init__(self, output: Path, *, overwrite: bool, reads: Iterable[Path] = ()) -> None:
        self.named, self.output = output, resolved(output)
        self._overwrite = overwrite
        self._check_free(list(reads))
        self.path = self.output.with_name(self.output.name + ".partial")
        processes.main_does(self._check_place)

    @property
    def store(self) -> Path:
        """Folder for what the teacher writes and predicts."""
        return self.path / SCRATCH / TARGETS

    @contextmanager
    def open(self, identity: str, *, needed_bytes: int) -> Iterator[Path]:
        """Yields the folder to work in, and locks it.

        After an `InstilError` in the block, the folder keeps what a later run can use, and the
        error says so. If there is nothing to keep, the folder is removed. An interruption leaves
        it as it is.

        Args:
            identity: Digest of everything that the run depends on.
            needed_bytes: Disk space that the run needs.

        Raises:
            OutputExistsError: another process has finished a run there meanwhile.
            OutputError: another process works on the folder, or it cannot be written.
            UnfinishedRunError: the folder holds an unfinished run with another identity.
            DiskFullError: there is not enough disk space.
        """
        with ExitStack() as held:
            processes.main_does(lambda: self._begin(identity, needed_bytes, held))
            try:
                yield self.path
            except InstilError as error:
                self._keep(error)
                raise
            except Exception as error:
                if not is_disk_full(error):
                    raise
                full = self._disk_full(needed_bytes)
                self._keep(full)
                raise full from None

    def finish(self) -> None:
        """Renames the folder to its final name. An earlier run is removed only now.

        Raises:
            OutputError: the folder cannot be renamed.
        """
        processes.main_does(self._finish)

    def _finish(self) -> None:
        try:
            if self._overwrite and self.output.exists():
                self.output.rename(self.path / REPLACED)
            self.path.rename(self.output)
        except OSError as error:
            raise OutputError(
                f"the run is complete, but {self.path} cannot be renamed to {self.output}",
                got=error.strerror or str(error),
                mend="rename it yourself",
            ) from None
        _empty(self.output, only=(IDENTITY, LOCK, REPLACED))

    def _check_free(self, reads: list[Path]) -> None:
        """Refuses a path that is taken by something that may not be replaced."""
        if _exists(self.output) and not self._overwrite:
            raise OutputExistsError(
                f"{self.named} already exists",
                mend="pass --overwrite to replace it, or name another folder"
                if _is_replaceable(self.output) and not self._is_here
                else "name another folder",
            )
        for place in map(resolved, reads):
            if place.is_relative_to(self.output):
                raise OutputExistsError(
                    f"the run would be written over {place}, which it reads",
                    got=f"output {self.named}",
                    mend="name another folder",
                )
        if not _exists(self.output):
            return
        if not _is_replaceable(self.output):
            raise OutputExistsError(
                f"{self.named} is not a finished run, so it is not overwritten",
                got=f"a folder without a {RESULTS} of instil" if self.output.is_dir() else "a file",
                mend="name another folder",
            )
        if self._is_here:
            raise OutputExistsError(
                f"{self.named} is or holds the current folder, so it is not overwritten",
                mend="change to another folder first",
            )

    @property
    def _is_here(self) -> bool:
        """Whether the output is the current folder, or holds it."""
        return Path.cwd().is_relative_to(self.output)

    def _check_place(self) -> None:
        check_place(self.path, self.named)
        if (self.path / LOCK).exists():
            with hold(self.path / LOCK, of=self.named):
                pass

    def _begin(self, identity: str, needed_bytes: int, held: ExitStack) -> None:
        """Makes and locks the folder, and removes what this run cannot use."""
        self._check_space(needed_bytes)
        try:
            made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold(self.path / LOCK, of=self.named))
            if self._overwrite and not self.output.exists() and (self.path / REPLACED).exists():
                (self.path / REPLACED).rename(self.output)  # a killed process had moved it
            if self.output.exists() and not self._overwrite:
                if made:
                    shutil.rmtree(self.path)
                raise OutputExistsError(
                    f"{self.named} exists by now: another process has written it",
                    mend="pass --overwrite to replace it, or name another folder",
                )
            self._clear(identity)
            with written_whole(self.path / IDENTITY) as work:
                work.write_text(identity, encoding="utf-8")
        except InstilError:
            raise
        except OSError as error:
            raise _not_written(self.named, error) from None

    def _clear(self, identity: str) -> None:
        """Removes what a run with another identity left, except the work of its teacher."""
        mark = self.path / IDENTITY
        if mark.exists():
            if mark.read_text(encoding="utf-8") == identity:
                return
            if not self._overwrite:
                raise UnfinishedRunError(
                    f"{self.path} holds an unfinished run with other settings",
                    mend="repeat the command of that run to finish it, pass --overwrite to discard "
                    "it (what its teacher wrote and predicted is kept), or name another folder",
                )
        elif strange := {p.name for p in self.path.iterdir()} - {SCRATCH, LOCK, IDENTITY + ".part"}:
            raise OutputExistsError(
                f"{self.path} is needed for the unfinished run, but it exists already",
                got=f"a folder with {min(strange)!r} in it, which is not a run of instil",
                mend="name another folder",
            )
        self._only_teacher()

    def _only_teacher(self) -> None:
        """Removes everything but the work of the teacher."""
        mark = self.path / IDENTITY
        mark.unlink(missing_ok=True)  # first: the rest no longer belongs together
        _empty(self.path, but=(SCRATCH, LOCK))
        if (self.path / SCRATCH).is_dir():
            _empty(self.path / SCRATCH, but=(TARGETS,))

    def _keep(self, error: InstilError) -> None:
        """Keeps what a later run can use, removes the rest, and adds to the error what is kept."""
        trained = any((self.path / CHECKPOINTS).glob("checkpoint-*"))
        if (self.path / RESULTS).exists() or (
            trained and not isinstance(error, NotFiniteLossError)
        ):
            kept = f"the work so far is kept in {self.path}: the same command resumes it"
        elif any(self.store.rglob("*.arrow")) or any(self.store.glob("*.jsonl")):
            self._only_teacher()
            kept = (
                f"what the teacher wrote and predicted is kept in {self.path}: the same command, "
                "also with other settings of the training, resumes from there"
            )
        else:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        error.mend = f"{error.mend}; {kept}" if error.mend else kept

    def _check_space(self, needed_bytes: int) -> None:
        written = sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())
        if shutil.disk_usage(nearest_folder(self.output)).free < needed_bytes - written:
            raise self._disk_full(needed_bytes)

    def _disk_full(self, needed_bytes: int) -> DiskFullError:
        return DiskFullError(
            f"not enough disk space for {self.named}",
            allowed=f"about {needed_bytes / 2**20:,.0f} MiB of free space",
            mend="free some space, or name a folder on another disk",
        )


def resolved(path: Path) -> Path:
    """Returns the absolute path that a path means, with all links followed.

    Raises:
        OutputError: the path cannot exist.
    """
    try:
        str(path).encode()  # libraries that write there pass the path on as UTF-8
        return path.resolve()
    except UnicodeEncodeError:
        got = "a name that is not UTF-8"
    except (OSError, RuntimeError, ValueError) as error:  # too many links, or a zero byte
        got = str(error)
    raise OutputError(f"{str(path)!a} cannot be a folder", got=got, mend="name another folder")


def check_place(path: Path, named: Path, *, there: bool = False) -> None:
    """Refuses a path at which no folder can be created and renamed. It leaves nothing there.

    Call it before the work begins.

    Args:
        path: The absolute path.
        named: The path in the words of the user, for the error message.
        there: Whether the folder may exist already; it may then be read-only.

    Raises:
        OutputError: no folder can be created there.
    """
    if there and _exists(path):
        if path.is_dir():
            return
        raise OutputError(f"{named} is a file", mend="name a folder")
    parent = nearest_folder(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".instil-", dir=parent) as probe:
            made = probe / path.relative_to(parent)
            made.mkdir(parents=True)
            made.rename(made.with_name("renamed"))
    except OSError as error:
        raise _not_written(named, error, parent) from None


def nearest_folder(path: Path) -> Path:
    """Returns the nearest parent of a path that exists."""
    return next(parent for parent in path.absolute().parents if _exists(parent))


def _not_written(named: Path, error: OSError, parent: Path | None = None) -> OutputError:
    got = error.strerror or str(error)
    if parent:
        got = f"{parent}: {got}" if parent.is_dir() else f"{parent} is a file"
    return OutputError(
        f"{named} cannot be created",
        got=got,
        mend="name a folder that you may write to",
    )


def _exists(path: Path) -> bool:
    """Whether there is something at a path. A name that is too long does not exist."""
    return os.path.lexists(path)


def _is_replaceable(path: Path) -> bool:
    """Whether a path is a finished run of any version of instil, or an empty folder."""
    if not path.is_dir():
        return False
    if not any(path.iterdir()):
        return True
    try:
        found = json.loads((path / RESULTS).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "instil_version" in found


def _empty(folder: Path, *, but: Collection[str] = (), only: Collection[str] | None = None) -> None:
    """Removes what is in a folder.

    Args:
        folder: The folder.
        but: Names that stay.
        only: Names that are removed. None: all others.
    """
    for path in list(folder.iterdir()):
        if path.name in but or (only is not None and path.name not in only):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
