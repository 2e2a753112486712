"""Finding a model by the name that a user types."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from instil.errors import HubUnreachableError, UnknownModelError
from instil.models.source import moved, on_hub, resolve

HUB_ID = "someone/some-model-that-nobody-has"
COMMITS = "1" * 40, "2" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that holds one model at one commit."""
    folder = tmp_path / "cache" / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMITS[0]
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMITS[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return folder


def asked(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Makes the hub answer with an error."""

    def answer(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(HfApi, "model_info", answer)


def not_found(kind: type[RepositoryNotFoundError | RevisionNotFoundError]) -> Exception:
    request = httpx2.Request("GET", "https://hub.invalid")
    return kind("404: no such thing", response=httpx2.Response(404, request=request))


@pytest.mark.parametrize("typed", ["./llama", "llama/", "llama", "../{root}/llama", "~/llama"])
def test_a_folder_is_found_from_everywhere(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    root = model_folders["llama"].parent
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(root))
    source = resolve(typed.format(root=root.name))
    assert source.path == source.anywhere == str(model_folders["llama"])
    assert source == resolve(str(model_folders["llama"]))
    assert source.commit is None


@pytest.mark.parametrize("name", ["./gone", "/gone/too", "three/part/name", "bad name!", "a/b@"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_unknown(name: str) -> None:
    with pytest.raises(UnknownModelError, match="neither a folder nor a valid hub id"):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no model is named"),
        ("  ", "no model is named"),
        ("https://hub.invalid/a/b", "got: a web address.*use its OWNER/NAME"),
        ("gone.gguf", "there is no file gone.gguf"),
    ],
)
def test_a_name_that_cannot_be_one_is_told(name: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        resolve(name)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("small.gguf", "small.gguf is a file; got: a GGUF file; allowed: a folder"),
        ("model.safetensors", "is a file; got: a file .safetensors.*folder that holds the file"),
        ("model", "model is a file"),
    ],
)
def test_a_file_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, message: str
) -> None:
    (tmp_path / file).write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    for name in (file, str(tmp_path / file)):
        with pytest.raises(UnknownModelError, match=message):
            resolve(name)


def put(folder: Path, name: str, content: object) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


ADAPTER = {"base_model_name_or_path": "the/base"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "folder without a model; got: no config.json in it"),
        ({"results.json": {"model": "a/b"}}, "got: a run of instil.*the model of this run, a/b"),
        ({"study.json": {}}, "got: a study of instil"),
        ({"a.gguf": 0}, "got: only GGUF files"),
        ({"checkpoint-9/config.json": {}}, "name a folder in it: checkpoint-9"),
        ({"snapshots/abc/config.json": {}}, "name a folder in it: snapshots/abc"),
        (
            {"adapter_config.json": ADAPTER},
            "holds a PEFT adapter, not.*its base, the/base; to continue",
        ),
        ({"adapter_config.json": []}, "holds a PEFT adapter, not a model"),
        ({"adapter_config.json": ADAPTER, "config.json": {}}, "a PEFT adapter beside a model"),
    ],
)
def test_a_folder_that_holds_something_else_says_what(
    tmp_path: Path, files: dict[str, object], message: str
) -> None:
    for name, content in files.items():
        put(tmp_path, name, content)
    with pytest.raises(UnknownModelError, match=message):
        resolve(str(tmp_path))


def test_a_folder_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UnknownModelError, match="cannot be read; got: Permission denied"):
        resolve(str(tmp_path))


def test_a_folder_comes_before_the_hub(
    tmp_path: Path, model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_folders["llama"], tmp_path / "owner" / "name@v1")
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name@v1").path == str(tmp_path / "owner" / "name@v1")


def test_a_model_in_the_cache_is_found_without_a_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(monkeypatch, AssertionError("the hub was asked"))
    (cache / "refs" / "v2").write_text(COMMITS[0])
    for name, revision in ((HUB_ID, None), (f"{HUB_ID}@v2", "v2"), (f"{HUB_ID}@{COMMITS[0]}",) * 2):
        source = resolve(str(name))
        assert source.path == HUB_ID
        assert source.revision == (revision and str(revision).rpartition("@")[2])
        assert source.commit == COMMITS[0]
        assert source.anywhere == f"{HUB_ID}@{COMMITS[0]}"


def test_a_hub_id_without_a_network_names_the_bundled_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked(monkeypatch, OSError("Name or service not known"))
    with pytest.raises(HubUnreachableError, match=r"cache.*bundled:smollm2-135m-instruct"):
        resolve(HUB_ID)


def test_a_hub_without_that_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch, not_found(RepositoryNotFoundError))
    with pytest.raises(UnknownModelError, match=r"there is no folder .*the hub has no model"):
        resolve(HUB_ID)


def test_a_revision_that_the_hub_does_not_have_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch, not_found(RevisionNotFoundError))
    with pytest.raises(
        UnknownModelError, match=r"has no revision 'v9'.*a branch, a tag or a commit"
    ):
        resolve(f"{HUB_ID}@v9")


def test_an_adapter_on_the_hub_is_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [SimpleNamespace(rfilename="adapter_config.json")]
    monkeypatch.setattr(HfApi, "model_info", lambda *a, **k: SimpleNamespace(siblings=files))
    with pytest.raises(UnknownModelError, match="holds a PEFT adapter, not a model"):
        resolve(HUB_ID)


def test_a_model_that_moved_is_known_without_a_network(cache: Path) -> None:
    before, now = (f"{HUB_ID}@{commit}" for commit in COMMITS)
    assert not moved(HUB_ID, before)
    assert moved(HUB_ID, now)
    assert not moved(HUB_ID, None)  # an older file of results
    assert not moved(f"{HUB_ID}@{COMMITS[0]}", before)
    assert not moved("other/model", f"other/model@{COMMITS[0]}")  # not in the cache
    assert not moved("/a/folder", "/a/folder")


def test_a_study_is_planned_without_torch() -> None:
    import subprocess

    code = "import sys, instil.models.source; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [("owner/name", True), ("owner/name@v1", True), ("bundled:a", False), (".", False)],
)
def test_a_name_of_the_hub_is_known_without_a_network(name: str, expected: bool) -> None:
    assert on_hub(name) is expected
