from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from instil.errors import DiskFullError, NotFiniteLossError, OutputExistsError, UnfinishedRunError
from instil.pipeline.folder import Staging


def test_a_run_gets_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "run", overwrite=False)
    with staging.open("a", needed_bytes=0) as folder:
        (folder / "results.json").write_text("x")
        assert not (tmp_path / "run").exists()
        staging.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["results.json"]


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="--overwrite"):
        Staging(tmp_path, overwrite=False)


def test_overwriting_keeps_the_old_run_until_the_new_one_is_whole(tmp_path: Path) -> None:
    old = tmp_path / "run"
    old.mkdir()
    (old / "results.json").write_text("old")
    staging = Staging(old, overwrite=True)
    with pytest.raises(NotFiniteLossError), staging.open("a", needed_bytes=0):
        raise NotFiniteLossError("the loss is nan")
    assert (old / "results.json").read_text() == "old"
    with staging.open("a", needed_bytes=0) as folder:
        (folder / "results.json").write_text("new")
        staging.finish()
    assert (old / "results.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_interruption_leaves_the_work_and_the_same_run_goes_on(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "run", overwrite=False)
    with pytest.raises(KeyboardInterrupt), staging.open("a", needed_bytes=0) as folder:
        (folder / "stage").write_text("done")
        raise KeyboardInterrupt
    with staging.open("a", needed_bytes=0) as folder:
        assert (folder / "stage").read_text() == "done"


def test_an_unfinished_run_with_other_settings_is_not_touched(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "run", overwrite=False)
    with pytest.raises(KeyboardInterrupt), staging.open("a", needed_bytes=0) as folder:
        (folder / "stage").write_text("done")
        raise KeyboardInterrupt
    with (
        pytest.raises(UnfinishedRunError, match="other settings"),
        staging.open("b", needed_bytes=0),
    ):
        pytest.fail("entered")
    assert (staging.path / "stage").exists()
    with Staging(tmp_path / "run", overwrite=True).open("b", needed_bytes=0) as folder:
        assert not (folder / "stage").exists()


def test_too_little_space_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "deep" / "run", overwrite=False)
    needed = shutil.disk_usage(tmp_path).total * 2
    with (
        pytest.raises(DiskFullError, match="MiB of free space"),
        staging.open("a", needed_bytes=needed),
    ):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError(
            "[enforce fail at inline_container.cc] . PytorchStreamWriter: file write failed"
        ),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_on_the_way_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    staging = Staging(tmp_path / "run", overwrite=False)
    with (
        pytest.raises(DiskFullError, match="not enough disk space"),
        staging.open("a", needed_bytes=0),
    ):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_crash_keeps_its_own_error_and_the_work(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "run", overwrite=False)
    with pytest.raises(RuntimeError, match="a bug"), staging.open("a", needed_bytes=0):
        raise RuntimeError("a bug")
    assert staging.path.exists()
