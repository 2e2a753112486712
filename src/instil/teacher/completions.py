"""What a teacher has written, kept in a file: read again by whoever asks it the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from instil.models.generate import Generated
from instil.system import processes
from instil.system.files import digest, written_whole

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredCompletions:
    """Completions, and where they come from.

    Attributes:
        completions: One a prompt.
        spent: What they have cost all processes, as `Recorder.spent` tells it.
        reused: Whether they were there already.
    """

    completions: list[Generated]
    spent: dict[str, float]
    reused: bool


def keep(
    path: Path, write: Callable[[], tuple[list[Generated], dict[str, float]]]
) -> StoredCompletions:
    """Reads the file, or lets the teacher write and makes it; another run that does so is waited for.

    All processes of a launch have to call it.

    Args:
        path: Its name holds a fingerprint of all that the completions depend on.
        write: Gives completions and what they cost.
    """
    with ExitStack() as held:
        there = processes.main_does(lambda: _begin(path, held))
        reused = there is not None
        if there is None:
            made, spent = write()
            there = {"spent": spent, "completions": [asdict(one) for one in made]}
            if processes.is_main():
                with written_whole(path) as work:
                    told = there | {"sha256": digest(there)}
                    work.write_text(json.dumps(told), encoding="utf-8")
    completions = [Generated(**one) for one in there["completions"]]
    return StoredCompletions(completions, there["spent"], reused)


def _begin(path: Path, held: ExitStack) -> dict[str, Any] | None:
    """What is there and sound; where nothing is, nobody else writes there as long as `held` is open."""
    there = _read(path)
    if there is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(FileLock(path.with_name(f"{path.name}.lock")))
        there = _read(path)  # another run may have been at work
    return there


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        sound = told.pop("sha256", None) == digest(told)
    except (ValueError, AttributeError):  # no JSON, or of another kind
        sound = False
    if not sound:
        _LOG.warning("%s is damaged: the teacher writes again", path)
    return told if sound else None
