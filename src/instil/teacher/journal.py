"""Completions on disk. Each batch is appended as soon as it is decoded.

A journal has one file per process: JSON Lines, one line per batch, each with its cost and a digest.
So a process that is killed loses one batch at most. A line that is cut off or changed is skipped,
and its rows are decoded again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from instil.models.generate import Generated
from instil.system import processes
from instil.system.costs import Recorder
from instil.system.disk import sync
from instil.system.files import digest

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """What a journal holds.

    Attributes:
        completions: Number of a row -> its completion.
        spent: Their cost over all processes, in the form of `Recorder.spent`.
    """

    completions: dict[int, Generated]
    spent: dict[str, float]


@dataclass(frozen=True)
class Journal:
    """The files of one set of completions.

    Attributes:
        folder: Folder of the files.
        name: Start of their names. It holds a digest of all that the completions depend on.
        worker: What tells the file of this process from those of others; None: its rank.
        share: What the wall time of this process counts; less than 1 if others work beside it.
    """

    folder: Path
    name: str
    worker: str | None = None
    share: float = 1.0

    @property
    def lock(self) -> Path:
        """The file to lock while one writes."""
        return self.folder / f"{self.name}.lock"

    def read(self) -> Written:
        """Reads all batches that are complete, of all processes."""
        completions: dict[int, Generated] = {}
        costs = Recorder()
        for path in sorted(self.folder.glob(f"{self.name}.*jsonl")):
            for batch in _batches(path):
                made = zip(batch["rows"], batch["ids"], batch["finished"], strict=True)
                completions |= {row: Generated(ids, finished) for row, ids, finished in made}
                costs.add("generate", batch["spent"])
        return Written(completions, costs.spent("generate"))

    def append(
        self, rows: Sequence[int], made: Sequence[Generated], spent: dict[str, float]
    ) -> None:
        """Appends a batch, and waits until it has reached the disk.

        Args:
            rows: Numbers of its rows.
            made: Their completions.
            spent: Their cost in this process, in the form of `Recorder.spent`.
        """
        rank = processes.rank()
        part = self.worker or (str(rank) if rank else None)
        path = self.folder / (f"{self.name}.{part}.jsonl" if part else f"{self.name}.jsonl")
        if rank:  # wall time and steps are the same in all processes
            spent = spent | {"wall_seconds": 0.0, "steps": 0}
        spent = spent | {"wall_seconds": spent["wall_seconds"] * self.share}
        batch = {
            "rows": list(rows),
            "ids": [one.ids for one in made],
            "finished": [one.finished for one in made],
            "spent": spent,
        }
        line = json.dumps(batch | {"sha256": digest(batch)})
        with path.open("a+b") as file:
            _cut_half_line(file)
            file.write(f"{line}\n".encode())
        sync(path)


def _cut_half_line(file: IO[bytes]) -> None:
    """Removes the half of a line that a killed process has left at the end."""
    end = file.seek(0, 2)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        cut = start + file.read(end - start).rfind(b"\n") + 1
        if cut > start or start == 0:
            file.truncate(cut)
            return
        end = start


def _batches(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the batches of a file, without lines that are damaged."""
    with path.open("rb") as file:
        for line in file:
            try:
                batch: dict[str, Any] = json.loads(line)
                valid = batch.pop("sha256", None) == digest(batch)
            except (ValueError, AttributeError, TypeError):  # not JSON, or not an object
                valid = False
            if valid:
                yield batch
            elif line.strip() and line.endswith(b"\n"):  # else it is the last one, cut off
                _LOG.warning("%s is damaged; the teacher generates what is missing again", path)
