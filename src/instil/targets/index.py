"""What a target store says of itself, and whether its shards are what it says.

A store is a folder: `store.json`, its copy, and one Arrow file a shard. `store.json` lists only shards that are whole on disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field
from typing_extensions import override

from instil.errors import DataFileError, DataFormatError, TargetStoreError
from instil.system.files import JsonFile, Strict, content_digest, digest, written_whole
from instil.targets.selection import Selection

INDEX = "store.json"
COPY = "store.copy.json"
GO_ON = "give the command that built it again: it resumes from there"


class Shard(Strict):
    """One Arrow file of a store.

    Attributes:
        file: Its name.
        first: Number of its first row.
        rows: Rows in it.
        tokens: Completion tokens in it.
        kept: Outcomes kept, of all its tokens, with those drawn.
        most_kept: Outcomes kept of one token, at most.
        bytes: Its size.
        sha256: Of the whole file.
    """

    file: str
    first: int = Field(ge=0)
    rows: int = Field(ge=1)
    tokens: int = Field(ge=0)
    kept: int = Field(ge=0)
    most_kept: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str

    def problem(self, folder: Path) -> str | None:
        """What is wrong with the file, with its name; None if nothing is."""
        path = folder / self.file
        if not path.is_file():
            return f"{self.file}: missing"
        size = path.stat().st_size
        if size != self.bytes:
            kind = "cut" if size < self.bytes else "too long"
            return f"{self.file}: {kind}, {size:,} bytes, expected {self.bytes:,}"
        found = content_digest(path)
        if found != self.sha256:
            return f"{self.file}: changed, sha256 {found[:12]}…, expected {self.sha256[:12]}…"
        return None


class StoreInfo(JsonFile):
    """`store.json`.

    Attributes:
        fingerprint: Of all that the targets depend on.
        rows: That the store has when it is whole.
        tokens: Of all their completions.
        vocabulary: Outcomes of the teacher's distribution.
        temperature: Of the targets.
        kept: Which outcomes of a token are kept one by one, and how many are drawn.
        teacher: Name of the model that made them, with its dtype.
        shards: Those that are whole on disk, in the order of their rows.
        whole: Whether these are all.
        checksum: Of everything else here.
    """

    lies_in: ClassVar[str] = "target store"

    schema_version: Literal[3] = 3
    fingerprint: str
    rows: int = Field(ge=0)
    tokens: int = Field(ge=0)
    vocabulary: int = Field(ge=1)
    temperature: float = Field(gt=0)
    kept: Selection
    teacher: str = ""
    shards: list[Shard] = []
    whole: bool = False
    checksum: str = ""

    def having(self, shards: list[Shard]) -> Self:
        """The same store with these shards on disk."""
        ordered = sorted(shards, key=lambda shard: shard.first)
        complete = sum(shard.rows for shard in ordered) == self.rows
        changed = self.model_copy(update={"shards": ordered, "whole": complete})
        return changed.model_copy(update={"checksum": changed._digest()})

    @override
    def write(self, path: Path) -> None:
        """Writes it and then its copy, so that one of them is always whole."""
        for one in (path, path.with_name(COPY)):
            with written_whole(one) as work:
                work.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
                sync(work)
            sync(path.parent)

    @classmethod
    @override
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote.

        Raises:
            TargetStoreError: there is no such file, or it is not as it was written.
        """
        try:
            info = super().read(path)
        except DataFileError:
            raise TargetStoreError(
                f"{path.parent} is no target store", got=f"no {INDEX} in it", mend="check the path"
            ) from None
        except DataFormatError as error:
            if error.got.startswith("schema_version"):
                raise TargetStoreError(
                    f"{path.parent} is a target store of another version of instil",
                    got=error.got,
                    mend="remove it: its targets are computed anew",
                ) from None
            raise _changed(path, error.got) from None
        if info.checksum != info._digest():
            raise _changed(path, "another checksum than its content has")
        return info

    @classmethod
    def latest(cls, path: Path) -> Self:
        """Reads what `write` wrote, from its copy where `path` is lost or damaged; that may lack the last shard.

        Raises:
            TargetStoreError: neither is as it was written.
        """
        try:
            return cls.read(path)
        except TargetStoreError as error:
            try:
                return cls.read(path.with_name(COPY))
            except TargetStoreError:
                raise error from None

    def missing(self) -> Iterator[str]:
        """Runs of rows that no shard holds, in words."""
        reached = 0
        ends = [(shard.first, shard.first + shard.rows) for shard in self.shards]
        for first, end in [*ends, (self.rows, self.rows)]:
            if first > reached:
                yield f"rows {reached} to {first - 1} of {self.rows}: not there yet"
            reached = end

    @property
    def stored_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def stored_tokens(self) -> int:
        """Completion tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    def _digest(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"checksum"}))


def exists(path: Path) -> bool:
    """Whether a folder is a target store, be it a damaged one."""
    return (path / INDEX).exists() or (path / COPY).exists()


def verify(path: Path) -> list[str]:
    """Reads a whole store again.

    Args:
        path: Its folder.

    Returns:
        What is wrong, each naming the shard; empty if the store is whole and as it was written.

    Raises:
        TargetStoreError: there is no store at all.
    """
    try:
        info = StoreInfo.read(path / INDEX)
    except TargetStoreError as error:
        if not exists(path):
            raise
        return [f"{INDEX}: {error.got}"]
    damaged = [shard.problem(path) for shard in info.shards]
    return [*filter(None, damaged), *info.missing()]


def sync(path: Path) -> None:
    """Waits until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _changed(path: Path, got: str) -> TargetStoreError:
    return TargetStoreError(
        f"{path} is not as it was written",
        got=got,
        mend=f"{GO_ON}; if it cannot, remove {path.parent}, and it computes everything again",
    )
