"""The digest of a cell: equal for equal runs, and for no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from instil.errors import DataFileError
from instil.recipe import canonical
from instil.recipe.canonical import cell_digest
from instil.recipe.recipe import Recipe


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


def cell(model: Path, teacher: Path | None = None) -> str:
    settings: dict[str, object] = {"model": str(model), "task": {"name": "gsm8k"}}
    if teacher is not None:
        settings["teacher"] = {"model": str(teacher)}
    return cell_digest(Recipe.parse(settings))


def test_a_model_is_its_content_and_not_its_time(model: Path) -> None:
    plain = cell(model)
    for path in model.iterdir():
        os.utime(path, (1, 1))
    (model / ".cache").mkdir()
    assert cell(model) == plain


def test_other_weights_of_the_same_size_and_time_are_another_cell(model: Path) -> None:
    weights = model / "model.safetensors"
    plain, state = cell(model), weights.stat()
    weights.write_bytes(bytes(999) + b"x")
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert cell(model) != plain


def test_a_new_file_is_another_cell(model: Path) -> None:
    plain = cell(model)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert cell(model) != plain


def test_a_local_teacher_counts_too(model: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "model.safetensors").write_bytes(b"1")
    plain = cell(model, teacher)
    (teacher / "model.safetensors").write_bytes(b"2")
    assert cell(model, teacher) != plain


def test_another_algorithm_is_another_cell(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cell(model)
    monkeypatch.setattr(canonical, "ALGORITHM", canonical.ALGORITHM + 1)
    assert cell(model) != plain


def test_a_model_that_cannot_be_read_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    canonical._content.cache_clear()
    monkeypatch.setattr(canonical, "sampled_digest", refuse)
    with pytest.raises(
        DataFileError, match=r"the model .*model cannot be read; got: .*config\.json"
    ):
        cell(model)
