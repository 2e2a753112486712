"""The digest of a cell: equal for equal runs, and for no others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from instil.errors import DataFileError
from instil.recipe import canonical
from instil.recipe.canonical import cell_digest, effective, unread_settings, unread_warning
from instil.recipe.grid import override, plan
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


def test_files_that_answers_are_judged_by_count(tmp_path: Path) -> None:
    schema, rules = tmp_path / "schema.json", tmp_path / "rules.yaml"
    schema.write_text('{"type": "object"}')
    rules.write_text("- {name: short, max_words: 3}\n")

    def judged() -> str:
        evaluation = {"metrics": [f"json_fields:{schema}"], "rules": str(rules)}
        return cell_digest(Recipe.parse({"model": "m/m", "evaluation": evaluation}))

    first = judged()
    assert judged() == first
    schema.write_text('{"type": "array"}')
    second = judged()
    assert second != first
    rules.write_text("- {name: short, max_words: 4}\n")
    assert judged() != second


def test_a_model_that_cannot_be_read_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    canonical._content.cache_clear()
    monkeypatch.setattr(canonical, "sampled_digest", refuse)
    with pytest.raises(
        DataFileError, match=r"the model .*model cannot be read; got: .*config\.json"
    ):
        cell(model)


FREE: dict[str, Any] = {"model": "tiny", "task": {"name": "gsm8k"}}
LABELS: dict[str, Any] = {"model": "tiny", "task": {"name": "sentiment"}}


@pytest.mark.parametrize(
    ("base", "changes", "keys"),
    [
        (FREE, [], []),
        (LABELS, [], []),
        (FREE, ["training.max_steps=3", "tuning.r=4", "teacher.samples=1"], []),
        (FREE, ["evaluation.baselines=[in_context, zero_shot]", "method=zero_shot"], []),
        (FREE, ["method=zero_shot", "training.max_steps=3"], ["training.max_steps"]),
        (FREE, ["method=zero_shot", "training.schedule=cosine"], []),  # the default
        (FREE, ["method=zero_shot", "tuning.r=4"], ["tuning.r"]),
        (FREE, ["method=zero_shot", "demonstrations.k=3"], ["demonstrations.k"]),
        (FREE, ["method=in_context", "training.rows=30"], []),  # the demonstrations are others
        (FREE, ["method=in_context", "training.epochs=3"], ["training.epochs"]),
        (FREE, ["method=in_context", "objective={name: reverse_kl}"], ["objective"]),
        (FREE, ["objective={name: cross_entropy}", "teacher.top_k=9"], ["teacher.top_k"]),
        (FREE, ["objective.temperature=2", "teacher.mass_per_draw=0.1"], ["teacher.mass_per_draw"]),
        (FREE, ["evaluation.validation_rows=9"], ["evaluation.validation_rows"]),
        (FREE, ["evaluation.validation_rows=9", "evaluation.at_steps=5"], []),
        (LABELS, ["method=in_context", "tuning={name: full}"], ["tuning"]),
        (LABELS, ["objective.over=labels", "teacher.top_k=9"], ["teacher.top_k"]),
        (
            FREE,
            ["method=pattern_fine_tuning", "teacher.samples=2", "teacher.sampling_temperature=1"],
            ["teacher.samples", "teacher.sampling_temperature"],
        ),
    ],
)
def test_settings_that_nothing_reads_are_named(
    base: dict[str, Any], changes: list[str], keys: list[str]
) -> None:
    recipe = Recipe.parse(override(base, changes))
    assert unread_settings(recipe, effective(recipe)) == keys


def test_the_warning_is_one_line() -> None:
    assert unread_warning(["a.b"]).startswith("a.b is set, but")
    assert unread_warning(["a.b", "c"]).startswith("a.b, c are set, but")


def test_a_grid_may_leave_settings_unread_in_some_cells() -> None:
    base = {**FREE, "training": {"max_steps": 3, "learning_rate": 0.1}}
    both = {"method": ["zero_shot", "distillation"]}
    assert plan({**base, "grid": both}).unread == []
    alone = {"method": ["zero_shot", "in_context"], "training.learning_rate": [0.1, 0.2]}
    assert plan({**base, "grid": alone}).unread == ["training.max_steps"]
