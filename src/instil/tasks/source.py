"""Reading a data set from the hub, or from a file of a local copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from instil.errors import DataFileError, HubUnreachableError
from instil.system.files import content_digest
from instil.tasks.formats import read_fields
from instil.tasks.records import Records, with_fields
from instil.tasks.text_files import check_file


@dataclass(frozen=True)
class Hub:
    """One split of a data set on the hub, as `datasets.load_dataset` finds it.

    Attributes:
        id: OWNER/NAME.
        split: Name of the split.
        config: Name of a configuration of the data set; None if it has only one.
        revision: Branch or commit; None for the main branch.
    """

    id: str
    split: str
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class DataSet:
    """A public data set of a task.

    Attributes:
        file: Its path in a local copy.
        hub: Its split on the hub.
        labels: Value of the label field, as text -> label of the task. Rows whose value maps to
            None are left out. Empty if answers are free text.
        file_fields: Name of a field in the task -> its name in the file, if they differ.
        hub_fields: Name of a field in the task -> its name on the hub, if they differ.
    """

    file: str
    hub: Hub
    labels: Mapping[str, str | None] = field(default_factory=dict)
    file_fields: Mapping[str, str] = field(default_factory=dict)
    hub_fields: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def facts(self) -> dict[str, object]:
        """All attributes as a dictionary; cached, because a grid needs it for every cell."""
        return asdict(self)


@dataclass(frozen=True)
class TextSet(DataSet):
    """A data set with free-text answers.

    Attributes:
        question: Pattern of the question, which is the field `question` in the task's own pattern.
        answer: Pattern of the gold answer.
    """

    question: str = "{question}"
    answer: str = "{answer}"


def read_set(name: str, data_set: DataSet, folder: Path | None) -> Records:
    """Reads a set, and renames its fields to the names in the task.

    Args:
        name: The set's name, for error messages.
        data_set: Its file and its place on the hub.
        folder: Folder of a local copy; None for the hub.

    Yields:
        For each row its place (for example file and line), for error messages, and its fields.

    Raises:
        DataFileError: the local copy does not have the file, or the hub the data set.
        DataFormatError: the file is malformed.
        HubUnreachableError: the hub cannot be reached.
    """
    if folder is None:
        mend = "set task.folder to the folder of a local copy"
        rows, renamed = read_hub(name, data_set.hub, mend=mend), data_set.hub_fields
    else:
        rows, renamed = read_fields(_path(name, data_set, folder)), data_set.file_fields
    for where, fields in rows:
        ours = {our: fields[theirs] for our, theirs in renamed.items() if theirs in fields}
        yield where, with_fields(fields, ours)


def fingerprint(name: str, data_set: DataSet, folder: Path | None) -> object:
    """All that `read_set` depends on: the content's SHA-256 for a local copy, or the hub ids.

    Raises:
        DataFileError: the local copy does not have the file.
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
    """The digest of a file in this state; cached, because a grid needs it for every cell."""
    try:
        return content_digest(path)
    except OSError as error:
        raise DataFileError(f"{path} cannot be read", got=error.strerror or str(error)) from None


def _path(name: str, data_set: DataSet, folder: Path) -> Path:
    path = folder / data_set.file
    try:
        check_file(path)
    except DataFileError as error:
        raise DataFileError(
            f"{error.what}; it should hold the set {name!r}",
            got=error.got,
            mend=f"put the file there, or remove task.folder to read {data_set.hub.id} from the hub",
        ) from None
    return path


def read_hub(name: str, hub: Hub, *, mend: str) -> Records:
    """Reads a split of a data set on the hub.

    Args:
        name: The set's name, for error messages.
        hub: Its place on the hub.
        mend: What else may be done, for error messages.

    Raises:
        DataFileError: the hub does not have it.
        HubUnreachableError: the hub cannot be reached.
    """
    # Imported here because it takes a second, and local files do not need it.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    except (DatasetsError, ValueError, RuntimeError) as error:  # it is missing or has changed
        raise DataFileError(
            f"the set {name!r} cannot be read from the hub",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            allowed=f"{hub.id}, config {hub.config}, split {hub.split}, revision {hub.revision}",
            mend=mend,
        ) from None
    except Exception as error:  # the hub's client raises many kinds of network error
        raise HubUnreachableError(
            f"the hub cannot be reached to read the set {name!r} ({hub.id})",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            mend=f"connect to the network, or {mend}",
        ) from None
    part = ", ".join(filter(None, (hub.config, hub.split)))
    for number, fields in enumerate(rows, start=1):
        yield f"{hub.id} ({part}), row {number}", fields
