"""Digests of values and of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from instil.system import files
from instil.system.files import content_digest, digest, sampled_digest


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
