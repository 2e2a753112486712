"""The display never ends the work."""

from __future__ import annotations

import errno
import io
import sys

import pytest

from instil.system.progress import Display


class Broken(io.StringIO):
    """A stream whose other end is closed."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("stream", [Broken(), None, "closed"])
def test_a_closed_standard_error_does_not_end_the_work(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | str | None
) -> None:
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    display = Display()
    display.note("starting")
    display.warn("careful")
    with display.bar("reading", 2) as bar:
        bar.advance(2)


def test_names_that_look_like_markup_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = Display()
    display.note("[/red] starts")
    with display.bar("answers [/red]", 1) as bar:
        bar.reach(1, "[/bold]")
    shown = capsys.readouterr().err
    assert "[/red] starts" in shown
    assert "answers [/red]" in shown
