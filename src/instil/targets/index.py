"""The index of a target store, and checks of its shards.

A store is a folder: `store.json`, its copy, and one Arrow file per shard. `store.json` lists only
shards that are complete on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field
from typing_extensions import override

from instil.errors import DataFileError, DataFormatError, TargetStoreError
from instil.system.disk import sync
from instil.system.files import JsonFile, Strict, content_digest, digest, written_whole
from instil.targets.selection import Selection

INDEX = "store.json"
COPY = "store.copy.json"
GO_ON = "run the command that built it again: it resumes and computes only what is missing"


class Shard(Strict):
    """One Arrow file of a store.

    Attributes:
        file: Its name.
        first: Number of its first row.
        rows: Number of rows in it.
        tokens: Number of completion tokens in it.
        kept: Number of outcomes kept for all its tokens, including drawn outcomes.
        most_kept: Largest number of outcomes kept for one token.
        bytes: Size of the file.
        sha256: Checksum of the full file.
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
        """The file's name and what is wrong with it; None if nothing is wrong."""
        path = folder / self.file
        if not path.is_file():
            return f"{self.file}: missing"
        size = path.stat().st_size
        if size != self.bytes:
            kind = "too short" if size < self.bytes else "too long"
            return f"{self.file}: {kind}, {size:,} bytes, expected {self.bytes:,}"
        found = content_digest(path)
        if found != self.sha256:
            return f"{self.file}: changed, sha256 {found[:12]}…, expected {self.sha256[:12]}…"
        return None


class StoreInfo(JsonFile):
    """`store.json`.

    Attributes:
        fingerprint: Digest of everything that the targets depend on.
        rows: Number of rows of the complete store.
        tokens: Number of completion tokens of the complete store.
        vocabulary: Number of outcomes of the teacher's distribution.
        temperature: Temperature of the targets.
        kept: Which outcomes of a token are kept one by one, and how many are drawn.
        teacher: Name of the model that made the targets, with its dtype.
        shards: The shards that are complete on disk, in the order of their rows.
        whole: Whether the store is complete.
        checksum: Checksum of all other fields.
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
        """Writes the file, then its copy, so that at least one of them is always complete."""
        for file in (path, path.with_name(COPY)):
            with written_whole(file) as work:
                work.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
                sync(work)
            sync(path.parent)

    @classmethod
    @override
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote.

        Raises:
            TargetStoreError: there is no such file, or it was changed after it was written.
        """
        try:
            info = super().read(path)
        except DataFileError:
            raise TargetStoreError(
                f"{path.parent} is not a target store",
                got=f"no {INDEX} in it",
                mend="check the path",
            ) from None
        except DataFormatError as error:
            if error.got.startswith("schema_version"):
                raise TargetStoreError(
                    f"{path.parent} is a target store of another version of instil",
                    got=error.got,
                    mend="remove it: its targets are then computed again",
                ) from None
            raise _changed(path, error.got) from None
        if info.checksum != info._digest():
            raise _changed(path, "a checksum that does not match the content")
        return info

    @classmethod
    def latest(cls, path: Path) -> Self:
        """Reads what `write` wrote, or its copy if `path` is lost or damaged.

        The copy may lack the last shard.

        Raises:
            TargetStoreError: both are lost or damaged.
        """
        try:
            return cls.read(path)
        except TargetStoreError as error:
            try:
                return cls.read(path.with_name(COPY))
            except TargetStoreError:
                raise error from None

    def missing(self) -> Iterator[str]:
        """Describes each range of rows that no shard holds."""
        reached = 0
        ends = [(shard.first, shard.first + shard.rows) for shard in self.shards]
        for first, end in [*ends, (self.rows, self.rows)]:
            if first > reached:
                yield f"rows {reached} to {first - 1} of {self.rows}: not computed yet"
            reached = end

    @property
    def stored_bytes(self) -> int:
        """Size of all shards, bytes."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def stored_tokens(self) -> int:
        """Number of completion tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    def _digest(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"checksum"}))


def exists(path: Path) -> bool:
    """Whether a folder is a target store, even if it is damaged."""
    return (path / INDEX).exists() or (path / COPY).exists()


def verify(path: Path) -> list[str]:
    """Reads a full store again and checks it.

    Args:
        path: Its folder.

    Returns:
        The problems, each with the name of its shard; empty if the store is complete and unchanged.

    Raises:
        TargetStoreError: the folder is not a target store.
    """
    try:
        info = StoreInfo.read(path / INDEX)
    except TargetStoreError as error:
        if not exists(path):
            raise
        return [f"{INDEX}: {error.got}"]
    damaged = [shard.problem(path) for shard in info.shards]
    return [*filter(None, damaged), *info.missing()]


def _changed(path: Path, got: str) -> TargetStoreError:
    return TargetStoreError(
        f"{path} was changed after it was written",
        got=got,
        mend=f"{GO_ON}; if that fails, remove {path.parent} first, to compute everything again",
    )
