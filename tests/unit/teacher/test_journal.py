"""Completions that are appended batch by batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from instil.models.generate import Generated
from instil.system.costs import Recorder
from instil.teacher.journal import Journal

ONE, TWO = Generated([5, 6], True), Generated([7], False)


def spent(tokens: int) -> dict[str, float]:
    """A cost of one second."""
    return Recorder().spent("generate") | {"wall_seconds": 1.0, "tokens": tokens, "steps": 1}


def test_batches_of_all_processes_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, "completions-ab")
    journal.append([3, 0], [ONE, TWO], spent(10))
    monkeypatch.setattr("instil.system.processes.rank", lambda: 1)
    journal.append([1], [TWO], spent(4))
    Journal(tmp_path, "completions-ac").append([2], [ONE], spent(1))
    found = journal.read()
    assert found.completions == {3: ONE, 0: TWO, 1: TWO}
    assert (found.spent["tokens"], found.spent["steps"], found.spent["wall_seconds"]) == (14, 1, 1)


@pytest.mark.parametrize("left", [b'{"rows": [0', b"x" * 10_000])
def test_half_a_line_of_a_killed_process_is_cut(
    tmp_path: Path, left: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    journal, path = Journal(tmp_path, "c"), tmp_path / "c.jsonl"
    path.write_bytes(left)
    journal.append([0], [ONE], spent(1))
    whole = path.read_bytes()
    assert whole.startswith(b'{"rows": [0], ')
    path.write_bytes(whole + left)
    assert journal.read().completions == {0: ONE}
    journal.append([1], [TWO], spent(1))
    assert path.read_bytes().startswith(whole)
    assert journal.read().completions == {0: ONE, 1: TWO}
    assert caplog.text == ""
