"""Files, folders, patterns, the hub and standard input."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from instil.errors import DataFileError
from instil.tasks import places
from instil.tasks.places import place_digest, read_place, spooled
from instil.tasks.source import Hub


def inputs(place: Path) -> list[object]:
    return [fields["input"] for _, fields in read_place(place)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "logs" / "old").mkdir(parents=True)
    (tmp_path / "logs" / "b.jsonl").write_text('{"input": "2"}\n')
    (tmp_path / "logs" / "a.csv").write_text("input\n1\n")
    (tmp_path / "logs" / "old" / "c.json").write_text('[{"input": "3"}]')
    (tmp_path / "logs" / ".hidden.jsonl").write_text('{"input": "no"}\n')
    (tmp_path / "logs" / "notes.txt").write_text("no rows")
    return tmp_path / "logs"


def test_a_folder_is_all_of_its_files_of_rows(folder: Path) -> None:
    assert inputs(folder) == ["1", "2", "3"]
    assert inputs(folder / "*.jsonl") == ["2"]
    assert inputs(folder / "**" / "*.json*") == ["2", "3"]


def test_the_digest_is_that_of_the_content(folder: Path) -> None:
    before = place_digest(folder)
    (folder / "notes.txt").write_text("other notes")
    assert place_digest(folder) == before
    (folder / "b.jsonl").write_text('{"input": "4"}\n')
    assert place_digest(folder) != before
    assert place_digest(folder / "*.csv") != place_digest(folder)


def test_a_place_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="holds no files of rows"):
        inputs(tmp_path)
    with pytest.raises(DataFileError, match="no files of rows match this pattern"):
        inputs(tmp_path / "*.jsonl")
    with pytest.raises(DataFileError, match="no such file"):
        inputs(tmp_path / "gone.jsonl")


def test_a_data_set_on_the_hub_is_named_by_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Hub] = []

    def read(name: str, hub: Hub, *, mend: str) -> object:
        asked.append(hub)
        return iter([("row 1", {"input": "1"})])

    monkeypatch.setattr(places, "read_hub", read)
    assert inputs(Path("hub:owner/name:train")) == ["1"]
    assert inputs(Path("hub:owner/name@v1:small:test")) == ["1"]
    assert asked == [
        Hub("owner/name", "train", None, None),
        Hub("owner/name", "test", "small", "v1"),
    ]
    assert place_digest(Path("hub:owner/name:train")) != place_digest(Path("hub:owner/name:test"))
    with pytest.raises(DataFileError, match="does not name a data set on the hub"):
        inputs(Path("hub:name"))


def test_standard_input_is_stored_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSTIL_CACHE", str(tmp_path))

    def piped(text: str) -> Path:
        stream = SimpleNamespace(buffer=io.BytesIO(text.encode()))
        monkeypatch.setattr(sys, "stdin", stream)
        return spooled(Path("-"))

    first = piped('{"input": "1"}\n')
    assert inputs(first) == ["1"]
    assert piped('{"input": "1"}\n') == first
    assert piped('{"input": "2"}\n') != first
    with pytest.raises(DataFileError, match="standard input is empty"):
        piped("\n")
    assert spooled(Path("x.jsonl")) == Path("x.jsonl")
