"""Digests of values and of files."""

from __future__ import annotations

import errno
import hashlib
import re
from pathlib import Path

import pytest

from instil.errors import DataFileError, DataFormatError
from instil.system import files
from instil.system.files import (
    JsonFile,
    Strict,
    content_digest,
    digest,
    read_lines,
    sampled_digest,
    write_lines,
    written_whole,
)


def test_a_digest_is_of_the_value_and_not_of_the_order_of_its_keys() -> None:
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": [2, None], "a": 1})
    assert digest([1, 2]) == digest((1, 2)) != digest([2, 1])
    assert len({digest(value) for value in (1, "1", [1], True, None, "ä", 1.5)}) == 7
    assert digest([]) == hashlib.sha256(b"[]").hexdigest()


def test_what_is_not_json_has_no_digest() -> None:
    with pytest.raises(TypeError):
        digest({"folder": Path()})


def test_a_file_has_the_digest_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"\x00content")
    assert content_digest(tmp_path / "one") == hashlib.sha256(b"\x00content").hexdigest()


def test_a_large_file_has_a_digest_of_its_size_and_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(files, "BLOCK_BYTES", 10)
    monkeypatch.setattr(files, "BLOCKS", 4)

    def of(content: bytes) -> str:
        (tmp_path / "file").write_bytes(content)
        return sampled_digest(tmp_path / "file")

    small, large = bytes(1000), bytes(2000)
    assert of(small) == content_digest(tmp_path / "file")
    plain = of(large)
    assert plain == of(large) != of(bytes(2001))
    assert len({plain, of(b"x" + large[1:]), of(large[1:] + b"x"), of(b"x" * 2000)}) == 4


class Line(Strict):
    """A line of a file."""

    text: str


class Whole(JsonFile):
    """A file."""

    lies_in = "run"

    text: str


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    lines = [Line(text=text) for text in ("a\nb", "\u2028 \x85", "", "é\r\n")]
    write_lines(tmp_path / "lines.jsonl", lines)
    assert read_lines(Line, tmp_path / "lines.jsonl") == lines


@pytest.mark.parametrize(
    "damage", [b'{"text": "a"}\n{"te', b"\xff\xfe", b'{"text": 1}\n', b'{"text": "a", "new": 1}']
)
def test_damaged_files_are_told(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(damage)
    for read in (lambda: read_lines(Line, path), lambda: Whole.read(path)):
        with pytest.raises(
            DataFormatError, match=r"file\.json is not a file\.json of this version"
        ):
            read()


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "x", tmp_path / "none", tmp_path / ("x" * 300)):
        for read in (lambda at: read_lines(Line, at), Whole.read):
            with pytest.raises(DataFileError, match=re.escape(str(path))):
                read(path)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match="No space"), written_whole(tmp_path / "a") as work:
        work.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
