"""The files of finished cells and studies: what is written, computed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.finished import COST, method_result, results, run_results, score

from instil.errors import DataFileError, DataFormatError
from instil.methods import MethodName
from instil.results.schema import (
    FAILURE,
    INDEX,
    RESULTS,
    ContextFacts,
    Failure,
    MethodResult,
    Results,
    StudyIndex,
    break_even,
)

COMPUTED = ("recovery", "tokens_saved", "break_even_queries")


def answered(
    method: MethodName, right: int | None, *, tokens: float = 20.0, seconds: float | None = 0.25
) -> MethodResult:
    made = method_result(method, score(right), tokens=tokens)
    return made.model_copy(update={"seconds_per_query": seconds})


def distilled(
    student: int | None = 8, zero_shot: int | None = 2, in_context: int | None = 9, **more: Any
) -> Results:
    """A student beside its baselines; each number is its right answers in ten rows."""
    return results(
        answered("distillation", student),
        answered("zero_shot", zero_shot),
        answered("in_context", in_context, tokens=50.0, seconds=0.75),
        **more,
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    for found in (run_results(), results(method_result("zero_shot", score(5)), labels=["a", "b"])):
        found.write(tmp_path / RESULTS)
        assert Results.read(tmp_path / RESULTS) == found
    failure = Failure(name="k=1", varied={"k": 1}, error="killed", message="why", seconds=1.5)
    failure.write(tmp_path / FAILURE)
    assert Failure.read(tmp_path / FAILURE) == failure
    index = StudyIndex(title="words", varied=["k"], cells=["k=1", "k=2"])
    index.write(tmp_path / INDEX)
    assert StudyIndex.read(tmp_path / INDEX) == index


def test_what_is_computed_is_written_too(tmp_path: Path) -> None:
    found = distilled()
    found.write(tmp_path / RESULTS)
    told = json.loads((tmp_path / RESULTS).read_text())
    assert {name: told[name] for name in COMPUTED} == {
        "recovery": pytest.approx(6 / 7),
        "tokens_saved": 30.0,
        "break_even_queries": 4,
    }
    assert set(COMPUTED) <= set(json.loads(Results.json_schema("results"))["properties"])


def test_what_is_computed_is_not_read(tmp_path: Path) -> None:
    found = distilled()
    wrong = found.model_dump(mode="json") | dict.fromkeys(COMPUTED, 99)
    (tmp_path / RESULTS).write_text(json.dumps(wrong))
    assert Results.read(tmp_path / RESULTS) == found
    assert Results.read(tmp_path / RESULTS).tokens_saved == 30


@pytest.mark.parametrize(
    ("student", "zero_shot", "in_context", "share"),
    [
        (9, 2, 9, 1.0),
        (2, 2, 9, 0.0),
        (1, 2, 4, -0.5),  # worse than without a context
        (10, 2, 6, 2.0),
        (8, 5, 5, None),  # the context gains nothing
        (8, 6, 5, None),
        (None, 2, 9, None),
        (8, None, 9, None),
        (8, 2, None, None),
    ],
)
def test_recovery_is_the_share_of_the_gain_that_the_student_keeps(
    student: int | None, zero_shot: int | None, in_context: int | None, share: float | None
) -> None:
    got = distilled(student, zero_shot, in_context).recovery
    assert got == (None if share is None else pytest.approx(share))


def test_break_even() -> None:
    assert break_even(9.0, 2.0) == 5
    assert break_even(9.0, 0.0) is None
    assert break_even(9.0, -1.0) is None


def test_recovery_is_of_the_first_set() -> None:
    def both(method: MethodName, first: int, second: int) -> MethodResult:
        return method_result(method, score(first), score(second, name="far", domain="out"))

    found = results(both("distillation", 6, 0), both("zero_shot", 2, 5), both("in_context", 10, 1))
    assert found.recovery == pytest.approx(0.5)


@pytest.mark.parametrize("missing", ["zero_shot", "in_context"])
def test_what_needs_a_baseline_is_null_without_it(missing: str) -> None:
    found = distilled()
    left = [one for one in found.methods if one.method != missing]
    got = found.model_copy(update={"methods": left})
    assert got.recovery is None
    assert (got.tokens_saved is None) == (missing == "in_context")
    assert (got.break_even_queries is None) == (missing == "in_context")


def test_what_was_not_trained_saves_nothing() -> None:
    found = results(answered("zero_shot", 2), answered("in_context", 9, tokens=50.0, seconds=0.75))
    assert [getattr(found, name) for name in COMPUTED] == [None, None, None]
    assert (found.training, found.tuning) == (None, None)


@pytest.mark.parametrize(
    ("student", "in_context", "queries"),
    [
        (0.25, 0.75, 12),
        (0.25, 0.65, 15),
        (0.5, 0.5, None),  # a query saves no time
        (0.75, 0.25, None),
        (None, 0.75, None),
        (0.25, None, None),
    ],
)
def test_break_even_is_after_the_queries_that_save_what_the_student_cost(
    student: float | None, in_context: float | None, queries: int | None
) -> None:
    """Two seconds for each phase, of which loading and evaluation count for nothing."""
    found = results(
        answered("distillation", 8, seconds=student),
        answered("in_context", 9, seconds=in_context),
        phases=dict.fromkeys(("load", "generate", "teach", "train", "evaluate"), COST),
    )
    assert found.break_even_queries == queries


def test_what_costs_nothing_is_paid_back_at_once() -> None:
    assert distilled(phases={"evaluate": COST}).break_even_queries == 0


@pytest.mark.parametrize(
    "change",
    [
        {"sede": 1},
        {"schema_version": 2},
        {"phases": {"lode": {}}},
        {"methods": []},
        {"seed": None},
        {"model": 3},
    ],
    ids=str,
)
def test_files_of_another_version_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (key,) = change
    told = run_results().model_dump(mode="json") | change
    (tmp_path / RESULTS).write_text(json.dumps(told))
    with pytest.raises(DataFormatError, match=rf"results\.json of this version.*{key}"):
        Results.read(tmp_path / RESULTS)


def test_unknown_keys_are_refused_at_every_depth(tmp_path: Path) -> None:
    told = run_results().model_dump(mode="json")
    told["methods"][0]["scores"][0]["acuracy"] = 1
    (tmp_path / RESULTS).write_text(json.dumps(told))
    with pytest.raises(DataFormatError, match="methods: 0: scores: 0: acuracy: Extra inputs"):
        Results.read(tmp_path / RESULTS)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite number"):
        method_result("zero_shot", score(5), tokens=float("nan"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_what_is_no_json_of_results_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULTS).write_text(text)
    with pytest.raises(DataFormatError, match=r"results\.json of this version"):
        Results.read(tmp_path / RESULTS)


@pytest.mark.parametrize(
    ("kind", "name", "lies_in"),
    [(Results, RESULTS, "finished run"), (StudyIndex, INDEX, "study"), (Failure, FAILURE, "study")],
)
def test_a_missing_file_names_its_kind_of_folder(
    tmp_path: Path, kind: Any, name: str, lies_in: str
) -> None:
    with pytest.raises(DataFileError, match=f"{name}: no such file.*folder of a {lies_in}"):
        kind.read(tmp_path / name)


@pytest.mark.parametrize("name", ["", ".", "..", "../out", "a/b", "a\\b"])
def test_a_cell_that_lies_outside_its_study_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="cells"):
        StudyIndex(title="words", varied=[], cells=["k=1", name])


@pytest.mark.parametrize(
    ("method", "k"),
    [
        ("zero_shot", 0),
        ("vanilla_fine_tuning", 0),
        ("pattern_fine_tuning", 0),
        ("in_context", 3),
        ("pattern_fine_tuning_in_context", 3),
        ("distillation", 3),
    ],
)
def test_k_counts_what_the_method_reads_or_learns_from(method: MethodName, k: int) -> None:
    """A baseline in context beside it changes nothing."""
    found = results(method_result(method, score(5)), method_result("in_context", score(9)))
    assert found.context == ContextFacts(description="3 demonstrations", k=3, tokens=30.0)
    assert (found.method, found.k) == (method, k)
    bare = results(method_result(method, score(5)), context=None)
    assert bare.k == 0


@pytest.mark.parametrize("name", ["lora", "full", "bitfit"])
def test_tuning_is_that_of_the_recipe_where_something_was_trained(name: str) -> None:
    recipe = {"tuning": {"name": name, "r": 4}}
    assert results(method_result("pattern_fine_tuning", score(5)), recipe=recipe).tuning == name
    assert results(method_result("zero_shot", score(5)), recipe=recipe).tuning is None


def test_a_result_is_found_by_its_method() -> None:
    found = distilled()
    assert found.result("zero_shot") == found.methods[1]
    assert found.result("pattern_fine_tuning") is None
