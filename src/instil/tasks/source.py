"""Where the rows of a set come from: a data set of the hub, or a file of a local copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from instil.errors import DataFileError, HubUnreachableError
from instil.system.files import content_digest
from instil.tasks.rows import check_file, read_fields


@dataclass(frozen=True)
class Hub:
    """One split of a data set on the hub, as `datasets.load_dataset` finds it.

    Attributes:
        id: OWNER/NAME.
        split: Name of the split.
        config: Which of the data set's parts; None where it has only one.
        revision: Branch or commit; None is the main branch.
    """

    id: str
    split: str
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class DataSet:
    """A set that a task knows.

    Attributes:
        file: Its path in a local copy.
        hub: Its place on the hub.
        labels: What its label field holds, numbers as text -> our label; None: such rows are left out. Empty where
            answers are free text.
        file_fields: Our name of a field -> the file's, where they differ.
        hub_fields: Our name of a field -> the hub's, where they differ.
    """

    file: str
    hub: Hub
    labels: Mapping[str, str | None] = field(default_factory=dict)
    file_fields: Mapping[str, str] = field(default_factory=dict)
    hub_fields: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def facts(self) -> dict[str, object]:
        """All of it; a grid asks for it for every cell."""
        return asdict(self)


@dataclass(frozen=True)
class TextSet(DataSet):
    """A set whose answers are free text.

    Attributes:
        question: Pattern of what is asked; the task's own pattern knows it as `question`.
        answer: Pattern of the gold answer.
    """

    question: str = "{question}"
    answer: str = "{answer}"


Fields = Iterator[tuple[str, Mapping[str, object]]]


def read_set(name: str, data_set: DataSet, folder: Path | None) -> Fields:
    """Reads a set, its fields renamed to ours.

    Args:
        name: The set's name, for messages.
        data_set: Where it is.
        folder: A local copy; None: the hub.

    Yields:
        Of each row where it stands, for messages, and its fields.

    Raises:
        DataFileError: the local copy lacks the file, or the hub the data set.
        DataFormatError: the file is malformed.
        HubUnreachableError: the hub cannot be reached.
    """
    if folder is None:
        rows, renamed = _read_hub(name, data_set.hub), data_set.hub_fields
    else:
        rows, renamed = read_fields(_path(name, data_set, folder)), data_set.file_fields
    for where, fields in rows:
        yield where, {**fields, **{o: fields[t] for o, t in renamed.items() if t in fields}}


def fingerprint(name: str, data_set: DataSet, folder: Path | None) -> object:
    """All that `read_set` depends on: of a local copy the content's SHA-256, of the hub the ids.

    Raises:
        DataFileError: the local copy lacks the file.
    """
    content = None if folder is None else file_digest(_path(name, data_set, folder))
    return {**data_set.facts, "content": content}


def file_digest(path: Path) -> str:
    """A SHA-256 of a file's content.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
    """
    check_file(path)
    state = path.stat()
    return _content(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _content(path: Path, size: int, changed: int) -> str:
    """The digest of a file in this state; a grid asks for it once a cell."""
    try:
        return content_digest(path)
    except OSError as error:
        raise DataFileError(f"{path} cannot be read", got=error.strerror or str(error)) from None


def _path(name: str, data_set: DataSet, folder: Path) -> Path:
    path = folder / data_set.file
    if not path.exists():
        raise DataFileError(
            f"{path}: no such file; it holds the set {name!r}",
            mend=f"leave task.folder out to read {data_set.hub.id} from the hub, or put the file there",
        )
    return path


def _read_hub(name: str, hub: Hub) -> Fields:
    # Not at the top: it takes a second, and local files do not need it.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    except (DatasetsError, ValueError, RuntimeError) as error:  # not found, or not as it was
        raise DataFileError(
            f"the hub does not give the set {name!r}",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            allowed=f"{hub.id}, config {hub.config}, split {hub.split}, revision {hub.revision}",
            mend="pass task.folder, the folder of a local copy",
        ) from None
    except Exception as error:  # the hub's client raises its transport's own errors
        raise HubUnreachableError(
            f"the set {name!r} is {hub.id} on the hub, and the hub cannot be reached",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            mend="pass task.folder, the folder of a local copy, or connect to the network",
        ) from None
    part = ", ".join(filter(None, (hub.config, hub.split)))
    for number, fields in enumerate(rows.to_list(), start=1):
        yield f"{hub.id} ({part}), row {number}", fields
