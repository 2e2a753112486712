"""What a cell's own process tells its study; studies themselves are tested with whole processes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instil.errors import UnknownModelError
from instil.models import load
from instil.pipeline import worker
from instil.recipe.recipe import Recipe

SETTINGS = {"model": "tiny", "seed": 3}


class Pipe:
    """Remembers what is sent; one that is broken has nobody at its other end."""

    def __init__(self, *, broken: bool = False) -> None:
        self.sent: list[Any] = []
        self.broken = broken

    def send(self, message: Any) -> None:
        if self.broken:
            raise BrokenPipeError
        self.sent.append(message)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Any]]:
    """What a cell's process sends when its cell ends in the given way."""
    monkeypatch.setattr(load, "quiet_libraries", lambda: None)

    def go(cell: Callable[..., object], *, broken: bool = False, **changes: Any) -> list[Any]:
        pipe: Any = Pipe(broken=broken)
        monkeypatch.setattr(worker, "run_cell", cell)
        worker._work(pipe, SETTINGS | changes, tmp_path / "cell", tmp_path / "targets")
        return list(pipe.sent)

    return go


def failing(error: BaseException) -> Callable[..., object]:
    def run(*args: Any, **more: Any) -> object:
        raise error

    return run


def test_a_cell_that_is_done_says_so_and_shows_its_progress(
    work: Callable[..., list[Any]], tmp_path: Path
) -> None:
    asked: list[Any] = []

    def run(recipe: Recipe, folder: Path, *, store: Path, display: Any) -> None:
        asked.append((recipe, folder, store))
        display.warn("cut")

    *shown, last = work(run)
    assert last == ("ended", None)
    assert shown == [("warn", "cut")]
    assert asked == [(Recipe.parse(SETTINGS), tmp_path / "cell", tmp_path / "targets")]


def test_an_error_of_ours_is_told_in_its_words(work: Callable[..., list[Any]]) -> None:
    error = UnknownModelError("no model 'x'", mend="check the path")
    assert work(failing(error)) == [
        ("ended", ("UnknownModelError", "no model 'x'; mend: check the path"))
    ]
    ((_, (kind, message)),) = work(failing(error), seed="one")
    assert kind == "ConfigError"
    assert "seed" in message


def test_any_other_error_is_told_with_where_it_came_from(work: Callable[..., list[Any]]) -> None:
    ((what, (kind, message)),) = work(failing(ZeroDivisionError("by nought")))
    assert (what, kind) == ("ended", "ZeroDivisionError")
    assert message.splitlines()[0] == "by nought"
    assert "Traceback" in message
    assert "in run\n" in message


def test_an_interruption_is_told_as_one(work: Callable[..., list[Any]]) -> None:
    assert work(failing(KeyboardInterrupt())) == [("interrupted",)]


@pytest.mark.parametrize("error", [BrokenPipeError(), KeyboardInterrupt()], ids=repr)
def test_a_cell_whose_study_is_gone_ends_in_silence(
    work: Callable[..., list[Any]], error: BaseException
) -> None:
    assert work(failing(error), broken=True) == []


def test_the_script_that_called_is_hidden_and_comes_back() -> None:
    script = sys.modules["__main__"]
    with pytest.raises(ZeroDivisionError), worker._without_script():
        hidden = sys.modules["__main__"]
        assert not hasattr(hidden, "__file__")
        assert hidden is not script
        raise ZeroDivisionError
    assert sys.modules["__main__"] is script


def test_a_full_disk_is_named(work: Callable[..., list[Any]]) -> None:
    def cell(*args: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ((ended, (kind, text)),) = work(cell)
    assert (ended, kind) == ("ended", "DiskFullError")
    assert "No space left" in text


@pytest.mark.parametrize(("name", "method"), [("t", "forkserver"), ("t" * 80, "spawn")])
def test_a_long_temporary_folder_does_without_a_socket(
    monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", f"/{name}")
    assert worker._method() == method
