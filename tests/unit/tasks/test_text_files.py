"""Text files: what is read, and what is said of files that are not UTF-8."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from instil.errors import DataFileError, DataFormatError
from instil.tasks.text_files import check_characters, check_file, read_exact_text, read_text

CURLY = "name,remark\nx,The “red” one – Anna’s\n"


def refusal(path: Path, content: bytes) -> str:
    """The message of the error that a content gives."""
    path.write_bytes(content)
    with pytest.raises(DataFormatError) as caught:
        read_text(path)
    assert str(path) in str(caught.value)
    assert caught.value.mend
    return str(caught.value)


def test_a_byte_order_mark_at_the_start_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n")
    assert read_text(path) == "a\n\ufeffb\n"


def test_lines_end_the_same_on_all_systems(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("1\r\n2\r3\n\r\n4\u2028\u0085".encode())
    assert read_text(path) == "1\n2\n3\n\n4\u2028\u0085"
    assert read_exact_text(path) == "1\r\n2\r3\n\r\n4\u2028\u0085"


@pytest.mark.parametrize(
    ("text", "encoding", "words"),
    [
        (
            CURLY,
            "cp1252",
            "line 2: the text is not UTF-8; got: byte 0x93; as Windows-1252 it reads ",
        ),
        ("Ein Käse\nder Öl", "latin1", "line 1: the text is not UTF-8; got: byte 0xe4"),
        (CURLY, "utf-16", "got: UTF-16;"),
        (CURLY, "utf-32", "got: UTF-32;"),
        ("a,b\nc,d\n", "utf-16-le", "got: UTF-16LE;"),
        ("a,b\nc,d\n", "utf-16-be", "got: UTF-16BE;"),
    ],
)
def test_the_advice_on_an_encoding_gives_the_text_when_it_is_followed(
    tmp_path: Path, text: str, encoding: str, words: str
) -> None:
    path = tmp_path / "my rows.csv"
    message = refusal(path, text.encode(encoding))
    assert words in message
    command = message[message.index("iconv") :].partition(";")[0]
    subprocess.run(command, shell=True, check=True)
    new = tmp_path / "my rows-utf8.csv"
    assert shlex.quote(str(new)) in command
    assert read_text(new) == text


def test_the_line_is_shown_as_windows_1252(tmp_path: Path) -> None:
    content = "Ä\r\nx “y” z\rlast".encode("cp1252")
    assert (
        "line 1: the text is not UTF-8; got: byte 0xc4; as Windows-1252 it reads 'Ä';"
        in refusal(tmp_path / "x.txt", content)
    )
    content = "A\r\nx “y” z\rlast".encode("cp1252")
    assert "line 2: the text is not UTF-8; got: byte 0x93; as Windows-1252 it reads 'x “y” z'" in (
        refusal(tmp_path / "x.txt", content)
    )


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("Привет, мир", "cp1251"), ("这个中文好", "gb18030"), ("こんにちは、世界", "shift_jis")],
)
def test_no_western_encoding_is_advised_for_other_scripts(
    tmp_path: Path, text: str, encoding: str
) -> None:
    message = refusal(tmp_path / "x.txt", text.encode(encoding))
    assert "1252" not in message
    assert "from the encoding that it has" in message


def test_one_wrong_byte_in_utf_8_is_no_reason_to_convert_the_file(tmp_path: Path) -> None:
    message = refusal(tmp_path / "x.txt", "Käse, Öl, Würze\nTee, Süßes\n".encode() + b"caf\xe9\n")
    assert "line 3: the text is not UTF-8; got: byte 0xe9, although most of the file" in message
    assert "iconv" not in message
    assert "cut off" in refusal(tmp_path / "x.txt", "Käse, Öl, ß".encode()[:-1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b\x08\x00\xff", "got: a gzip archive.*gunzip"),
        (b"PK\x03\x04\x14\x00", "got: a zip archive or an office document"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "got: an office document"),
        (b"PAR1\x00\x01", r"got: a Parquet file.*ends in \.parquet"),
        (b"%PDF-1.7\n\xe2\xe3", "got: a PDF"),
        (b"\x89PNG\r\n\x1a\n\x00", "it is binary; got: a zero byte in line 3"),
        (b"a\nb\x00c\n", "it is binary; got: a zero byte in line 2"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=words):
        read_text(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.txt", "no such file; mend: check the path"),
        ("~/rows.txt", "no such file; mend: write the whole path"),
        ("x" * 300, "cannot be read; got: File name too long"),
        ("zero\x00byte", "no such file"),
        ("file/in-a-file", "no such file"),
        ("empty", "is empty"),
        (".", "is a folder"),
        ("pipe", "is a pipe or a device"),
        ("caf\udce9", r"'caf\\udce9': the name of the file is not UTF-8; mend: rename"),
    ],
)
def test_a_path_without_a_file_that_can_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("empty").touch()
    os.mkfifo("pipe")
    with pytest.raises(DataFileError, match=words):
        check_file(Path(name))


def test_a_file_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.txt"
    path.write_text("x")

    def refused(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(DataFileError, match=r"x\.txt cannot be read; got: Permission denied"):
        read_text(path)


def test_half_a_character_is_refused() -> None:
    check_characters("\U0001f600 whole", "it")
    with pytest.raises(DataFormatError, match="it contains half a character"):
        check_characters("half \ud83d", "it")
