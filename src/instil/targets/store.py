"""The target store: a folder with the teacher's predictions, which can be read in any order.

A store holds `store.json`, its copy and one Arrow stream per shard, which is mapped into memory
when a row of it is read. It is opened only if it is complete. A shard is written under another name,
forced to disk and renamed. Only then does `store.json` list it. So if a build is interrupted, every
listed shard is complete. The next build computes only missing and damaged shards.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from instil.errors import TargetStoreError
from instil.system import processes
from instil.system.disk import sync
from instil.system.files import content_digest, written_whole
from instil.system.locks import hold
from instil.system.progress import Advance
from instil.targets.codec import Encoded, decode, encode
from instil.targets.index import GO_ON, INDEX, Shard, StoreInfo, exists, verify
from instil.targets.prediction import Targets
from instil.targets.selection import Selection

__all__ = [
    "Missing",
    "Score",
    "StorePlan",
    "StoredTargets",
    "TargetStore",
    "build",
    "filled",
    "verify",
    "write_shard",
]

Score = Callable[[Sequence[int]], Iterable[tuple[int, list[int], Targets]]]
"""Maps numbers of rows to (number, completion, targets) of each row, in any order.

The targets have the likeliest outcomes first.
"""

Missing = Sequence[tuple[str, range]]
"""File names of shards, with the numbers of their rows."""
LISTED, QUICK = 0.05, 0.02
"""Listing shards takes longer the more there are. If it takes more than `QUICK` seconds, it is done
less often, so that it takes at most this share of the time."""

_COLUMNS = [field.name for field in fields(Encoded)]
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("completion", pa.list_(pa.int32())),
        *((name, pa.binary()) for name in _COLUMNS),
    ]
)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StorePlan:
    """The planned content of a store.

    Attributes:
        fingerprint: Digest of everything that the targets depend on, except the fields below.
        lengths: Number of tokens of each row's completion. A row's number is its index here, and
            shards hold rows in this order.
        vocabulary: Number of outcomes of the teacher's distribution.
        kept: Which outcomes are kept one by one.
        temperature: Temperature of the targets.
        teacher: The teacher's name, for information only: two names of the same model make the same
            store.
        shard_rows: Most rows in a shard. A build that is killed loses at most this many; of thousands
            of shards, what was computed in the last seconds.
        shard_tokens: Most completion tokens in a shard; a longer row is a shard of its own.
    """

    fingerprint: str
    lengths: Sequence[int]
    vocabulary: int
    kept: Selection
    temperature: float = 1.0
    teacher: str = ""
    shard_rows: int = 64
    shard_tokens: int = 16_384

    @property
    def info(self) -> StoreInfo:
        """The store before any of it is computed."""
        return StoreInfo(
            fingerprint=self.fingerprint,
            rows=len(self.lengths),
            tokens=sum(self.lengths),
            vocabulary=self.vocabulary,
            temperature=self.temperature,
            kept=self.kept,
            teacher=self.teacher,
        ).having([])

    def shards(self) -> dict[str, range]:
        """Maps each file name to the numbers of its rows."""
        starts, held = [0], 0
        for number, count in enumerate(self.lengths):
            full = number - starts[-1] == self.shard_rows or held + count > self.shard_tokens
            if full and number > starts[-1]:
                starts.append(number)
                held = 0
            held += count
        ends = [*starts[1:], len(self.lengths)]
        return {
            f"shard-{place:05d}.arrow": range(start, end)
            for place, (start, end) in enumerate(zip(starts, ends, strict=True))
            if end > start
        }


@dataclass(frozen=True)
class StoredTargets:
    """One row of a store: its number, its completion in token ids, and the teacher's targets."""

    row: int
    completion: list[int]
    targets: Targets


class TargetStore(Sequence[StoredTargets]):
    """A complete store. Rows are read from the mapped files when they are requested.

    Args:
        path: Its folder.
        info: Content of `store.json`.
    """

    def __init__(self, path: Path, info: StoreInfo) -> None:
        self.path = path
        self.info = info
        self._starts = [shard.first for shard in info.shards]
        self._mapped: dict[int, Any] = {}

    @classmethod
    def open(cls, path: Path, *, fingerprint: str | None = None, check: bool = True) -> TargetStore:
        """Opens a complete store.

        Args:
            path: Its folder.
            fingerprint: Required fingerprint of the targets; None: any.
            check: Read every shard and compare its checksum.

        Raises:
            TargetStoreError: there is no store, it was made with other settings, it is not
                complete, or it is damaged.
        """
        info = StoreInfo.read(path / INDEX)
        if fingerprint is not None and info.fingerprint != fingerprint:
            raise _other(path, ["fingerprint"])
        if not info.whole:
            raise TargetStoreError(
                f"the target store {path} is not complete",
                got=f"{sum(shard.rows for shard in info.shards)} of {info.rows} rows",
                mend=GO_ON,
            )
        problems = verify(path) if check else []
        if problems:
            raise TargetStoreError(
                f"the target store {path} is damaged", got=", ".join(problems), mend=GO_ON
            )
        return cls(path, info)

    def __len__(self) -> int:
        return self.info.rows

    def __getitem__(self, number: int) -> StoredTargets:  # type: ignore[override]  # no slices
        number = range(len(self))[number]
        place = bisect_right(self._starts, number) - 1
        (record,) = self._shard(place).slice(number - self._starts[place], 1).to_pylist()
        completion = record["completion"]
        encoded = Encoded(**{name: record[name] for name in _COLUMNS})
        targets = decode(encoded, tokens=len(completion), temperature=self.info.temperature)
        return StoredTargets(record["row"], completion, targets)

    def _shard(self, place: int) -> Any:
        """The rows of a shard, mapped into memory at its first use."""
        if place not in self._mapped:
            path = self.path / self.info.shards[place].file
            with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
                self._mapped[place] = stream.read_next_batch()
        return self._mapped[place]


def build(
    path: Path,
    plan: StorePlan,
    score: Score,
    *,
    advance: Advance = lambda rows, tokens: None,
) -> TargetStore:
    """Computes the shards that are missing or damaged, and opens the store.

    If a launch has several processes, each computes one shard at a time, and the main process lists
    the shards. If another run builds the same store, this run waits for it.

    Args:
        path: Its folder.
        plan: The content of the store.
        score: Computes the teacher's targets, for the rows of one shard at a time.
        advance: Called to report rows that this process need not compute; `score` reports the
            others.

    Raises:
        TargetStoreError: the folder has a store that was made with other settings, or that cannot
            be read.
        NotFiniteLossError: the teacher's numbers are NaN or infinite.
        ValueError: `score` returns other rows than requested.
    """

    def here(missing: Missing) -> Iterator[list[Shard]]:
        for start in range(0, len(missing), processes.count()):
            mine = missing[start + processes.rank() :][:1]
            made = [write_shard(path / file, numbers, plan, score) for file, numbers in mine]
            together = [shard for shards in processes.gather(made) for shard in shards]
            if len(together) > len(made):
                advance(sum(shard.rows for shard in together if shard not in made), 0)
            yield together

    return filled(path, plan, here, advance=advance)


def filled(
    path: Path,
    plan: StorePlan,
    write: Callable[[Missing], Iterator[list[Shard]]],
    *,
    advance: Advance,
) -> TargetStore:
    """Has the shards that are missing or damaged written, lists them, and opens the store.

    Args:
        path: Its folder.
        plan: The content of the store.
        write: Writes shards, in any order, and yields them as they are complete.
        advance: Called to report the rows that are there already.

    Raises:
        TargetStoreError: as for `build`.
    """
    with ExitStack() as held:
        info = processes.main_does(lambda: _begin(path, plan, held))
        advance(sum(shard.rows for shard in info.shards), 0)
        present = {shard.file for shard in info.shards}
        missing = [one for one in plan.shards().items() if one[0] not in present]
        made, listed, took = [*info.shards], time.monotonic(), 0.0
        try:
            for shards in write(missing):
                made += shards
                if took < QUICK or time.monotonic() - listed >= took / LISTED:
                    start = time.monotonic()
                    info = _list(path, info, made)
                    listed = time.monotonic()
                    took = listed - start
        finally:
            if len(made) > len(info.shards):
                info = _list(path, info, made)
    return TargetStore(path, info)


def _list(path: Path, info: StoreInfo, shards: list[Shard]) -> StoreInfo:
    """Writes the index of a store with these shards."""
    info = info.having(shards)
    if processes.is_main():
        info.write(path / INDEX)
    return info


def _begin(path: Path, plan: StorePlan, held: ExitStack) -> StoreInfo:
    """The undamaged part of the store; afterwards `store.json` lists only that.

    While `held` is open, no other process writes to the store. A complete, undamaged store is not
    locked, because its folder may be read-only.
    """
    index = path / INDEX
    if exists(path):
        info = _as_planned(path, StoreInfo.latest(index), plan)
        if info.whole and not verify(path):
            return info
    held.enter_context(hold(path.with_name(f"{path.name}.lock"), of=path, wait=True))
    if exists(path):  # another run may have been at work
        return _without_damaged(path, _as_planned(path, StoreInfo.latest(index), plan))
    if path.exists() and not path.is_dir():
        raise TargetStoreError(f"{path} is a file", mend="name a folder for the target store")
    path.mkdir(parents=True, exist_ok=True)
    plan.info.write(index)
    return plan.info


def _as_planned(path: Path, info: StoreInfo, plan: StorePlan) -> StoreInfo:
    """Returns `info`; raises `TargetStoreError` if the store was made with other settings."""
    differing = _differences(info, plan)
    if differing:
        raise _other(path, differing)
    return info


def _differences(info: StoreInfo, plan: StorePlan) -> list[str]:
    """Names of the settings in which the store differs from the plan."""
    found, wanted = info.model_dump(), plan.info.model_dump()
    settings = [name for name in wanted if name not in {"teacher", "shards", "whole", "checksum"}]
    differing = [name for name in settings if found[name] != wanted[name]]
    layout = plan.shards()
    cut = {shard.file: range(shard.first, shard.first + shard.rows) for shard in info.shards}
    if not differing and any(layout.get(file) != numbers for file, numbers in cut.items()):
        return ["shards"]
    return differing


def _without_damaged(path: Path, info: StoreInfo) -> StoreInfo:
    """The same store without its damaged shards; `store.json` is written again."""
    try:
        StoreInfo.read(path / INDEX)
    except TargetStoreError as error:
        _LOG.warning("%s: %s: read from its copy: %s", path, INDEX, error.got)
    problems = {shard.file: shard.problem(path) for shard in info.shards}
    for problem in filter(None, problems.values()):
        _LOG.warning("%s: computing again: %s", path, problem)
    info = info.having([shard for shard in info.shards if problems[shard.file] is None])
    info.write(path / INDEX)
    return info


def write_shard(path: Path, numbers: range, plan: StorePlan, score: Score) -> Shard:
    """Computes the rows of a shard and writes them in the order of their numbers.

    The file is complete, or it does not exist.

    Args:
        path: The file.
        numbers: Numbers of its rows.
        plan: The content of the store.
        score: Computes the teacher's targets.

    Raises:
        ValueError: `score` returns other rows than requested.
    """
    records: dict[int, dict[str, Any]] = {}
    counts: list[int] = []
    for number, completion, targets in score(numbers):
        _check(number, completion, targets, plan)
        counts += _counts(targets)
        record = {"row": number, "completion": completion, **asdict(encode(targets))}
        records[number] = record
    if sorted(records) != list(numbers):
        raise ValueError(
            f"rows {numbers.start} to {numbers.stop - 1} were requested, but `score` returned "
            f"other rows ({len(records)})"
        )
    ordered = [records[number] for number in numbers]
    with written_whole(path) as work:
        with pa.OSFile(str(work), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(ordered, schema=_SCHEMA))
        sync(work)
        size, digest = work.stat().st_size, content_digest(work)
    sync(path.parent)
    return Shard(
        file=path.name,
        first=numbers.start,
        rows=len(numbers),
        tokens=len(counts),
        kept=sum(counts),
        most_kept=max(counts, default=0),
        bytes=size,
        sha256=digest,
    )


def _check(number: int, completion: list[int], targets: Targets, plan: StorePlan) -> None:
    got = (len(completion), len(targets.ids_NK), targets.temperature)
    planned = (plan.lengths[number], plan.lengths[number], plan.temperature)
    if got != planned or targets.ids_NK.shape[1] > plan.kept.most:
        raise ValueError(
            f"row {number}: the plan has {planned[0]} tokens at temperature {planned[2]}, with at "
            f"most {plan.kept.most} outcomes per token; got {got[0]} tokens and targets for "
            f"{got[1]} tokens at temperature {got[2]}, with {targets.ids_NK.shape[1]} outcomes "
            "per token"
        )


def _counts(targets: Targets) -> Iterator[int]:
    """Number of outcomes that each token keeps."""
    if targets.kept_NK is None:
        yield from [targets.ids_NK.shape[1]] * len(targets.ids_NK)
    else:
        yield from targets.kept_NK.sum(-1).tolist()


def _other(path: Path, differing: Sequence[str]) -> TargetStoreError:
    return TargetStoreError(
        f"the target store {path} was made with other settings",
        got=f"another {', '.join(differing)}",
        mend="name another folder, or remove this one",
    )
