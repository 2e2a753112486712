"""The disk, and paths on it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from instil.system.disk import from_home, is_disk_full, sync


def test_home_is_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert from_home("~/runs/a") == tmp_path / "runs" / "a"
    assert from_home("~") == tmp_path
    for text in ("a/~", "~nobody/a", "runs", "/x"):
        assert from_home(text) == Path(text)


def test_a_full_disk_is_known_in_all_its_forms() -> None:
    assert is_disk_full(OSError(errno.ENOSPC, "x"))
    assert is_disk_full(OSError(errno.EDQUOT, "x"))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))


def test_files_and_folders_reach_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    sync(tmp_path / "a")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "b")
