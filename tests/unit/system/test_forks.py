"""Work that copies of this process do."""

from __future__ import annotations

import os

import pytest

from instil.system import forks


@pytest.fixture(autouse=True)
def _two_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "copies", lambda: 2)
    monkeypatch.setattr(forks, "SHARE", 2)
    monkeypatch.setattr(forks, "ROUND", 3)
    monkeypatch.setattr(forks, "MANY", 4)


def test_the_results_come_in_order_from_copies() -> None:
    own = os.getpid()

    def work(numbers: range) -> list[tuple[int, bool]]:
        return [(number, os.getpid() == own) for number in numbers]

    made = list(forks.shares(work, 15))
    assert [one for part in made for one in part] == [(number, False) for number in range(15)]
    assert list(forks.shares(work, 3)) == [[(0, True), (1, True)], [(2, True)]]  # too few to share
    assert list(forks.shares(work, 0)) == []


def test_an_error_in_a_copy_is_raised_here() -> None:
    seen: list[int] = []

    def work(numbers: range) -> int:
        if 5 in numbers:
            raise KeyError(numbers.start)
        return numbers.start

    with pytest.raises(KeyError, match="4"):
        for one in forks.shares(work, 15):
            seen.append(one)
    assert seen == [0, 2]


def test_what_a_dead_copy_did_is_done_here() -> None:
    own = os.getpid()

    def work(numbers: range) -> list[int]:
        if 5 in numbers and os.getpid() != own:
            os._exit(1)
        return [*numbers]

    assert [one for part in forks.shares(work, 15) for one in part] == [*range(15)]


def test_as_many_copies_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(forks.os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr(forks.sys, "platform", "linux")
    assert forks.copies() == forks.MOST
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert forks.copies() == 4
    monkeypatch.setattr(forks.sys, "platform", "darwin")
    assert forks.copies() == 1
