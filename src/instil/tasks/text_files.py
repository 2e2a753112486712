"""Reads text files, which are UTF-8, and says what to do about files that are not."""

from __future__ import annotations

import codecs
import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from instil.errors import DataFileError, DataFormatError

_OTHER_KINDS = {
    b"\x1f\x8b": ("a gzip archive", "unpack it, for example with gunzip"),
    b"PK\x03\x04": ("a zip archive or an office document", "save its content as text or CSV"),
    b"\xd0\xcf\x11\xe0": ("an office document", "save its content as text or CSV"),
    b"PAR1": ("a Parquet file", "rename it, so that its name ends in .parquet"),
    b"%PDF": ("a PDF", "save its text in a file"),
}
"""First bytes of a file -> what it is, and how its text is made readable."""

PACKED = {".gz": "gzip", ".zst": "zstd"}
"""Extension of a packed file -> how it is packed."""

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark -> encoding. The marks of UTF-32 begin with those of UTF-16."""

_ESCAPED = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is wrong
_LINE_END = re.compile("\r\n|\r|\n")
_NOT_WESTERN = re.compile(r"[^\W\d_a-zA-Z]{4}")  # letters with accents seldom stand side by side


def check_file(path: Path) -> None:
    """Checks that a path is a file and not empty.

    Raises:
        DataFileError: the path is a folder or a pipe, its name is not UTF-8, or the file is
            missing, empty or out of reach.
    """
    try:
        str(path).encode()  # a run's files name this one
        state = path.stat()
    except UnicodeEncodeError:
        raise DataFileError(
            f"{str(path)!r}: the name of the file is not UTF-8", mend="rename the file"
        ) from None
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
        home = str(path).startswith("~")
        raise DataFileError(
            f"{path}: no such file",
            mend="write the whole path: `~` stands for the home folder only in a shell"
            if home
            else "check the path",
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if stat.S_ISDIR(state.st_mode):
        raise DataFileError(f"{path} is a folder", allowed="a file")
    if not stat.S_ISREG(state.st_mode):
        raise DataFileError(
            f"{path} is a pipe or a device",
            allowed="a file, because it is read more than once",
            mend="write the content to a file first",
        )
    if state.st_size == 0:
        raise DataFileError(f"{path} is empty", mend="check the program that wrote it")


def read_bytes(path: Path) -> bytes:
    """Reads a file.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: it is the pointer that Git LFS leaves in place of a file.
    """
    check_content(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    return _unpacked(path, data) if path.suffix.lower() in PACKED else data


def check_content(path: Path) -> None:
    """Checks that a file holds its data, and not what stands for it.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: it is the pointer that Git LFS leaves in place of a file.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise _unreadable(path, error) from None
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise DataFormatError(
            f"{path} does not hold the data, only the pointer to it that Git LFS leaves",
            mend="fetch the data: git lfs pull",
        )


def _unpacked(path: Path, data: bytes) -> bytes:
    import pyarrow as pa

    try:
        with pa.input_stream(pa.py_buffer(data), compression=PACKED[path.suffix.lower()]) as stream:
            return bytes(stream.read())
    except Exception as error:  # pyarrow raises many kinds
        raise DataFormatError(
            f"{path} cannot be unpacked",
            got=str(error).splitlines()[0],
            mend="the file may be cut off, or have another extension than its content; create it again",
        ) from None


def lines_of(path: Path) -> Iterator[tuple[int, str, bool]]:
    r"""Yields the lines of a text file, with their numbers from 1, and whether each is the last one.

    A file is read line by line, so that a large one takes little memory. Only \n, \r\n and \r end a
    line: a JSON string may contain U+2028 and the like.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: the file is binary or not UTF-8.
    """
    number = 0
    if path.suffix.lower() not in PACKED:
        check_content(path)
        try:
            with path.open("rb") as file:
                line = file.readline()
                while line:
                    text, following = line.rstrip(b"\r\n"), file.readline()
                    if b"\r" in text or b"\x00" in text:
                        break
                    number += 1
                    yield number, text.decode("utf-8"), not line.endswith(b"\n")
                    line = following
                else:
                    return
        except UnicodeDecodeError:
            pass
        except OSError as error:
            raise _unreadable(path, error) from None
    # Another line end, or a fault that the whole file explains better.
    lines = read_text(path).split("\n")
    for count, one in enumerate(lines[number:], number + 1):
        yield count, one, count == len(lines)


def read_text(path: Path) -> str:
    r"""Reads a text file as UTF-8, with or without a byte order mark; lines end in \n.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: the file is binary or not UTF-8.
    """
    return _LINE_END.sub("\n", read_exact_text(path))


def read_exact_text(path: Path) -> str:
    """Reads a text file as `read_text` does, but leaves the line ends as they are.

    Raises:
        DataFileError: the file is missing, empty or cannot be read.
        DataFormatError: the file is binary or not UTF-8.
    """
    data = read_bytes(path)
    try:
        if b"\x00" in data:
            raise _not_text(path, data, data.index(b"\x00"))
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(path, data, error.start) from None


def check_characters(text: str, what: str) -> None:
    """Checks that a tokenizer can read a text.

    Args:
        text: The text.
        what: What the text is, for the error message.

    Raises:
        DataFormatError: the text contains a lone surrogate (half a character).
    """
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataFormatError(
            f"{what} contains half a character",
            got="a lone surrogate, for example from an emoji that was cut in two",
            mend="correct the text",
        )


def _unreadable(path: Path, error: OSError) -> DataFileError:
    return DataFileError(f"{path} cannot be read", got=error.strerror or str(error))


def _not_text(path: Path, data: bytes, place: int) -> DataFormatError:
    """The error for a file that is not UTF-8 text.

    Args:
        path: The file.
        data: Its content.
        place: Index of the first wrong byte.
    """
    for beginning, (kind, mend) in _OTHER_KINDS.items():
        if data.startswith(beginning):
            return DataFormatError(
                f"{path} is not UTF-8 text: it is binary", got=kind, allowed="UTF-8 text", mend=mend
            )
    if encoding := _wide_encoding(data):
        return DataFormatError(
            f"{path} is not UTF-8 text",
            got=encoding.upper(),
            allowed="UTF-8",
            mend=f"convert it: {_conversion(path, encoding)}",
        )
    line = len(_LINE_END.findall(data[:place].decode("latin1"))) + 1
    if data[place] == 0:
        return DataFormatError(
            f"{path} is not UTF-8 text: it is binary",
            got=f"a zero byte in line {line}",
            allowed="UTF-8 text",
            mend="save it as UTF-8 text, or remove the zero byte",
        )
    what, got = f"{path}, line {line}: the text is not UTF-8", f"byte 0x{data[place]:02x}"
    if _is_mostly_utf8(data):
        return DataFormatError(
            what,
            got=f"{got}, although most of the file is UTF-8",
            allowed="UTF-8",
            mend="write this line again; if it is the last one, the file may be cut off",
        )
    text = _as_windows_1252(data)
    if text is None:
        return DataFormatError(
            what,
            got=got,
            allowed="UTF-8",
            mend="save it as UTF-8 in the program that wrote it, or convert it with iconv -f "
            "ENCODING -t utf-8, from the encoding that it has, for example windows-1251, gb18030 "
            "or shift_jis",
        )
    before, after = text[:place], text[place:]  # in Windows-1252 a character is a byte
    excerpt = _LINE_END.split(before)[-1][-40:] + _LINE_END.split(after)[0][:40]
    return DataFormatError(
        what,
        got=f"{got}; as Windows-1252 it reads {excerpt!r}",
        allowed="UTF-8",
        mend=f"if it reads well so, convert the file: {_conversion(path, 'windows-1252')}; "
        "else name another encoding after -f",
    )


def _wide_encoding(data: bytes) -> str | None:
    """The encoding of a text that is UTF-16 or UTF-32, with a byte order mark or without."""
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return encoding
    # Without a mark, the zero bytes of ASCII characters are on one side of each pair.
    first, second = data[::2].count(0), data[1::2].count(0)
    if (first + second) * 10 < len(data) or min(first, second) * 10 > max(first, second):
        return None
    encoding = "utf-16le" if second > first else "utf-16be"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    return encoding if all(it.isprintable() or it.isspace() for it in text) else None


def _is_mostly_utf8(data: bytes) -> bool:
    """Whether there are more characters of several bytes than bytes that are wrong."""
    text = data.decode("utf-8", "surrogateescape")
    wrong = len(_ESCAPED.findall(text))
    return sum(not letter.isascii() for letter in text) > 2 * wrong


def _as_windows_1252(data: bytes) -> str | None:
    """The text as Windows-1252, which contains Latin-1; None if it is another encoding."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    return None if _NOT_WESTERN.search(text) else text


def _conversion(path: Path, encoding: str) -> str:
    """The command that writes a file in UTF-8 beside the file."""
    new = path.with_name(f"{path.stem}-utf8{path.suffix}")
    return f"iconv -f {encoding} -t utf-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}"
