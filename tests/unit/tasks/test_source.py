from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instil.errors import DataFileError, FieldError, HubUnreachableError
from instil.tasks import Paraphrase, Sentiment
from instil.tasks.rows import Row
from instil.tasks.source import DataSet, Hub, read_set

SET = DataSet("set/rows.jsonl", Hub("owner/name", "train"), {}, file_fields={"ours": "theirs"})


def test_fields_of_a_local_file_are_renamed_and_the_others_kept(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / SET.file).write_text('{"theirs": "x", "id": 7}\n{"id": 8}\n')
    assert [fields for _, fields in read_set("it", SET, tmp_path)] == [
        {"theirs": "x", "ours": "x", "id": 7},
        {"id": 8},
    ]


def test_a_missing_local_file_names_the_set_and_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataFileError) as caught:
        list(read_set("it", SET, tmp_path))
    assert str(tmp_path / SET.file) in str(caught.value)
    assert "'it'" in str(caught.value)
    assert "remove task.folder to read owner/name from the hub" in str(caught.value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` reads as it reads a data set of the hub: integer labels, two splits."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    folder.mkdir()
    rows: list[dict[str, Any]] = [
        {"sentence": "fine", "label": 1},
        {"sentence": "awful", "label": 0},
    ]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "test.jsonl").write_text('{"sentence": "who knows", "label": -1}\n')
    for name, split in (("sst2_train", "train"), ("sst2", "validation"), ("imdb", "test")):
        there = replace(Sentiment.sets[name].hub, id=str(folder), split=split)
        known = replace(Sentiment.sets[name], hub=there, hub_fields={"text": "sentence"})
        monkeypatch.setitem(Sentiment.sets, name, known)  # type: ignore[arg-type]
    return folder


def test_the_hub_is_read_by_datasets(hub: Path) -> None:
    task = Sentiment(out_of_domain=())
    read = task.read()
    assert read.train == [
        Row("Review: fine\nSentiment:", "positive"),
        Row("Review: awful\nSentiment:", "negative"),
    ]
    assert read.in_domain == {"sst2": read.train}
    assert task.digest() == Sentiment(out_of_domain=()).digest()


def test_an_unlabelled_split_is_refused(hub: Path) -> None:
    with pytest.raises(FieldError, match=r"\(test\), row 1.*int -1.*has no label"):
        Sentiment(out_of_domain=("imdb",)).read()


def test_a_data_set_that_changed_on_the_hub_is_told(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in (Hub(str(hub), "dev"), Hub(str(hub), "train", config="gone")):
        changed = replace(Sentiment.sets["sst2_train"], hub=other)
        monkeypatch.setitem(Sentiment.sets, "sst2_train", changed)  # type: ignore[arg-type]
        with pytest.raises(DataFileError, match="'sst2_train' cannot be read from the hub"):
            Sentiment(out_of_domain=()).read()


def test_no_network_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match=r"nyu-mll/glue.*task\.folder"):
        Paraphrase().read()


def test_the_digest_of_hub_sets_needs_no_network() -> None:
    assert Paraphrase().digest() != Paraphrase(out_of_domain=()).digest()
