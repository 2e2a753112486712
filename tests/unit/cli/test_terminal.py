"""Text for terminals of any encoding."""

from __future__ import annotations

import codecs
import io
import sys

import pytest

from instil.cli.terminal import HANDLER, use_plain_letters


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "latin-1", "utf-8"])
def test_no_character_ends_a_command(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", None)  # a program without a terminal may have none
    use_plain_letters()
    print("0.1 – 0.9 → caf\udce9 日本 ━ 🙂", file=out, flush=True)
    written = out.buffer.getvalue()  # type: ignore[attr-defined]
    assert written.decode(encoding).startswith("0.1 ")
    if encoding == "ascii":
        assert written == b"0.1 - 0.9 -> caf\\udce9 \\u65e5\\u672c \\u2501 \\U0001f642\n"


def test_text_that_cannot_be_read_is_still_an_error() -> None:
    use_plain_letters()
    with pytest.raises(UnicodeDecodeError):
        codecs.decode(b"\xff", "utf-8", HANDLER)
