from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instil.errors import (
    DiskFullError,
    InstilError,
    NotFiniteLossError,
    OutputError,
    OutputExistsError,
    UnfinishedRunError,
)
from instil.pipeline.folder import LOCK, Staging
from instil.system.locks import hold

RUN = '{"instil_version": "0.1.0"}'


def work(output: Path, identity: str = "a", *, overwrite: bool = False, **files: str) -> Path:
    """Takes a run to its end; `files` are the contents of its files by the stem of their names."""
    staging = Staging(output, overwrite=overwrite)
    with staging.open(identity, needed_bytes=0) as folder:
        for name, text in files.items():
            (folder / f"{name}.json").write_text(text)
        staging.finish()
    return output


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    (old / "results.json").write_text(RUN)
    (old / "other.json").write_text("old")
    staging = Staging(old, overwrite=True)
    with pytest.raises(NotFiniteLossError), staging.open("a", needed_bytes=0):
        raise NotFiniteLossError("the loss is nan")
    assert (old / "other.json").read_text() == "old"
    with staging.open("a", needed_bytes=0) as folder:
        (folder / "results.json").write_text("new")
        staging.finish()
    assert (old / "results.json").read_text() == "new"
    assert names(tmp_path) == ["run"]
    assert names(old) == ["results.json"]


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


@pytest.mark.parametrize("written", [".", "", "..", "/", "folder", "file", "run"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_there_and_is_no_run_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, overwrite: bool
) -> None:
    here = tmp_path / "own" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    (here / "folder").mkdir()
    (here / "folder" / "results.json").write_text("[1]")
    (here / "file").write_text("my own")
    (here / "run").symlink_to("folder")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputExistsError, match=r"name another folder|another folder first"):
        Staging(Path(written), overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_current_folder_is_not_replaced_even_if_it_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(tmp_path / "run", results=RUN)
    (tmp_path / "run" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "run" / "deep")
    with pytest.raises(OutputExistsError, match="current folder"):
        Staging(Path(".."), overwrite=True)
    monkeypatch.chdir(tmp_path)
    work(Path("run"), overwrite=True, results=RUN)
    assert names(tmp_path / "run") == ["results.json"]


def test_a_link_stands_for_the_folder_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("monday")
    work(tmp_path / "latest", results=RUN)
    assert names(tmp_path) == ["latest", "monday"]
    work(tmp_path / "latest", "b", overwrite=True, results=RUN, more="x")
    assert names(tmp_path) == ["latest", "monday"]
    assert names(tmp_path / "latest") == ["more.json", "results.json"]
    assert (tmp_path / "latest").is_symlink()


@pytest.mark.parametrize(
    "output",
    [
        "loop",
        "file/run",
        "x" * 300,
        "x" * 250,  # fits, but `.partial` after it does not
        "deep/" + "x" * 300 + "/run",
        "zero\0byte",
        b"caf\xe9",
        "/proc/run",
    ],
)
def test_a_place_where_no_run_can_be_is_refused_at_once(
    tmp_path: Path, output: str | bytes
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    before = names(tmp_path)
    named = os.fsdecode(output)
    with pytest.raises((OutputError, OutputExistsError)) as raised:
        Staging(tmp_path / named, overwrite=False)
    assert "name a" in str(raised.value)
    str(raised.value).encode()
    assert names(tmp_path) == before


def test_odd_but_valid_names_work(tmp_path: Path) -> None:
    for name in ("with space", "[bold]", "zeile\nzwei", "café–日本", "-x", "a.partial", "x" * 240):
        assert names(work(tmp_path / name, results=RUN)) == ["results.json"]
    assert len(names(tmp_path)) == 7


def test_what_a_run_reads_is_not_overwritten(tmp_path: Path) -> None:
    run = work(tmp_path / "run", results=RUN)
    (tmp_path / "link").symlink_to("run")
    for read in (run, run / "model", tmp_path / "link" / "model"):
        with pytest.raises(OutputExistsError, match="which it reads"):
            Staging(run, overwrite=True, reads=[tmp_path / "inputs.jsonl", read])
    with pytest.raises(OutputExistsError, match="which it reads"):
        Staging(tmp_path / "new", overwrite=False, reads=[tmp_path / "new" / "targets"])
    Staging(run, overwrite=True, reads=[tmp_path / "run2"])


def test_folders_of_others_beside_the_run_are_left_alone(tmp_path: Path) -> None:
    work(tmp_path / "run", results=RUN)
    for name in ("run.old", "run.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    with (
        pytest.raises(OutputExistsError, match=r"run\.partial is needed .* 'mine'"),
        Staging(tmp_path / "run", overwrite=True).open("a", needed_bytes=0),
    ):
        pytest.fail("entered")
    shutil.rmtree(tmp_path / "run.partial")
    work(tmp_path / "run", overwrite=True, results=RUN)
    assert names(tmp_path / "run.old") == ["mine"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_at_which_another_process_works_is_refused(
    tmp_path: Path, overwrite: bool
) -> None:
    first = Staging(tmp_path / "run", overwrite=False)
    second = Staging(tmp_path / "run", overwrite=overwrite)
    with first.open("a", needed_bytes=0) as folder:
        (folder / "results.json").write_text(RUN)
        with (
            pytest.raises(OutputError, match=r"another process works on .*run"),
            second.open("b", needed_bytes=0),
        ):
            pytest.fail("entered")
        with pytest.raises(OutputError, match="another process works on"):
            Staging(tmp_path / "run", overwrite=overwrite)
        first.finish()
    assert names(tmp_path) == ["run"]
    if not overwrite:  # it was begun before the first one ended
        with (
            pytest.raises(OutputExistsError, match="another process has written it"),
            second.open("a", needed_bytes=0),
        ):
            pytest.fail("entered")
        assert names(tmp_path) == ["run"]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from instil.pipeline.folder import Staging\n"
        "with Staging(Path(sys.argv[1]), overwrite=False).open('a', needed_bytes=0): os._exit(9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], check=False)
    assert ended.returncode == 9
    assert (tmp_path / "run.partial" / LOCK).exists()
    work(tmp_path / "run", results=RUN)
    assert names(tmp_path) == ["run"]


def test_a_mount_without_locks_still_works(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("filelock.BaseFileLock.acquire", refuse)
    with hold(tmp_path / LOCK, of=tmp_path):
        assert names(tmp_path) == []


def test_a_mount_without_renames_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError, match=r"cannot be created; got: .*not supported"):
        Staging(tmp_path / "run", overwrite=False)
    assert names(tmp_path) == []


def teacher_s(folder: Path) -> Path:
    """Writes a shard of targets."""
    shard = folder / "scratch" / "targets" / "0f" / "shard-00000.arrow"
    shard.parent.mkdir(parents=True)
    shard.write_text("targets")
    return shard


def checkpoint(folder: Path) -> Path:
    state = folder / "checkpoints" / "checkpoint-5" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    return state


@pytest.mark.parametrize(
    ("error", "trained", "kept"),
    [
        (NotFiniteLossError("the loss is nan", mend="lower the learning rate"), True, "teacher"),
        (OutputError("the store cannot be written"), False, "teacher"),
        (OutputError("the store cannot be written"), True, "all"),
        (OSError(errno.ENOSPC, "No space left on device"), False, "teacher"),
        (OSError(errno.ENOSPC, "No space left on device"), True, "all"),
    ],
)
def test_after_an_error_the_work_is_kept_and_told(
    tmp_path: Path, error: Exception, trained: bool, kept: str
) -> None:
    staging = Staging(tmp_path / "run", overwrite=False)
    with pytest.raises(InstilError) as raised, staging.open("a", needed_bytes=0) as folder:
        shard = teacher_s(folder)
        state = checkpoint(folder) if trained else folder / "none"
        (folder / "scratch" / "phases.json").write_text("{}")
        raise error
    assert str(staging.path) in str(raised.value)
    assert "the same command" in str(raised.value)
    assert shard.exists()
    assert state.exists() == (kept == "all")
    if kept == "teacher":  # no setting of the training holds it back
        with Staging(tmp_path / "run", overwrite=False).open("b", needed_bytes=0) as folder:
            assert shard.exists()
            assert names(folder) == [LOCK, "identity", "scratch"]
            assert names(folder / "scratch") == ["targets"]
    else:
        with Staging(tmp_path / "run", overwrite=False).open("a", needed_bytes=0):
            assert state.exists()


def test_other_settings_discard_the_training_and_keep_the_teacher_s_work(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "run", overwrite=False)
    with pytest.raises(KeyboardInterrupt), staging.open("a", needed_bytes=0) as folder:
        shard, state = teacher_s(folder), checkpoint(folder)
        raise KeyboardInterrupt
    with (
        pytest.raises(UnfinishedRunError, match="its teacher wrote and predicted is kept"),
        Staging(tmp_path / "run", overwrite=False).open("b", needed_bytes=0),
    ):
        pytest.fail("entered")
    assert state.exists()
    with Staging(tmp_path / "run", overwrite=True).open("b", needed_bytes=0):
        assert shard.exists()
        assert not state.exists()


def test_a_run_killed_before_it_was_marked_goes_on(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / LOCK).touch()
    (tmp_path / "run.partial" / "identity.part").touch()
    work(tmp_path / "run", results=RUN)
    assert names(tmp_path / "run") == ["results.json"]


def test_a_run_killed_while_it_took_its_name_leaves_the_old_one(tmp_path: Path) -> None:
    work(tmp_path / "run", results=RUN, old="old")
    staging = Staging(tmp_path / "run", overwrite=True)
    with pytest.raises(KeyboardInterrupt), staging.open("a", needed_bytes=0) as folder:
        (tmp_path / "run").rename(folder / "replaced")
        raise KeyboardInterrupt
    with Staging(tmp_path / "run", overwrite=True).open("b", needed_bytes=0):
        assert (tmp_path / "run" / "old.json").read_text() == "old"


def test_a_run_that_cannot_take_its_name_stays_whole(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "run", overwrite=False)
    with (
        pytest.raises(OutputError, match=r"the run is complete, but .* rename it yourself"),
        staging.open("a", needed_bytes=0) as folder,
    ):
        (folder / "results.json").write_text(RUN)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine").touch()
        staging.finish()
    assert (staging.path / "results.json").exists()
    assert names(tmp_path / "run") == ["mine"]
