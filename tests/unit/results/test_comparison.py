from __future__ import annotations

import json

import pytest
from tests.finished import method_result, results, score

from instil.errors import ConfigError
from instil.results.comparison import averages, best
from instil.results.schema import Results


def distilled(right: int | None, kl: float, *, r: int, seed: int = 0) -> Results:
    student = method_result("distillation", score(right, kl=kl), drift=0.5)
    return results(student, seed=seed, varied={"tuning.r": r, "seed": seed})


def test_a_row_averages_the_seeds_of_one_method_setting_and_set() -> None:
    cells = [
        distilled(6, 0.25, r=2, seed=0),
        distilled(8, 0.75, r=2, seed=1),
        distilled(9, 0.5, r=4, seed=0),
    ]
    two, four = averages(cells, ["method", "tuning.r", "seed"])
    assert two == {
        "method": "distillation",
        "baseline": False,
        "tuning.r": 2,
        "set": "words",
        "domain": "in",
        "rows": 10,
        "seeds": 2,
        "accuracy": pytest.approx(0.7),
        "accuracy_sd": pytest.approx(0.02**0.5),
        "kl_to_teacher": 0.5,
        "agreement": 0.9,
        "cross_entropy": 0.5,
        "drift": 0.5,
        "prompt_tokens": 20.0,
        "seconds_per_query": 0.25,
    }
    assert (four["tuning.r"], four["seeds"], four["accuracy_sd"]) == (4, 1, None)


def test_rows_are_flat_and_have_the_same_keys() -> None:
    objective = {"name": "forward_kl", "temperature": 2.0}
    cells = [
        results(method_result("zero_shot", score(None), score(3, name="far", domain="out"))),
        results(
            method_result("distillation", score(8, kl=0.5)),
            method_result("zero_shot", score(2)),
            varied={"objective": objective},
        ),
    ]
    rows = averages(cells, ["method", "objective"])
    assert [(row["method"], row["set"], row["baseline"]) for row in rows] == [
        ("zero_shot", "words", False),
        ("zero_shot", "far", False),
        ("distillation", "words", False),
        ("zero_shot", "words", True),
    ]
    assert len({tuple(row) for row in rows}) == 1
    assert all(isinstance(v, str | int | float | None) for row in rows for v in row.values())
    assert (rows[0]["accuracy"], rows[0]["kl_to_teacher"]) == (None, None)
    assert (rows[0]["objective"], json.loads(rows[2]["objective"])) == (None, objective)


def test_the_best_cell_has_the_highest_accuracy_then_the_lowest_kl() -> None:
    cells = [
        results(method_result("zero_shot", score(10))),
        distilled(8, 0.1, r=2),
        distilled(9, 0.3, r=4),
        distilled(9, 0.2, r=8),
        distilled(None, 0.0, r=16),
    ]
    assert best(cells, "distillation") == 3
    assert best(cells, "zero_shot") == 0


def test_the_best_cell_is_chosen_on_the_first_set_in_domain_or_on_a_named_one() -> None:
    def cell(near: int, far: int) -> Results:
        away = score(far, name="far", domain="out")
        return results(method_result("distillation", away, score(near)))

    cells = [cell(9, 1), cell(5, 6)]
    assert best(cells, "distillation") == 0
    assert best(cells, "distillation", "far") == 1


def test_a_method_or_a_set_that_is_not_there_is_refused() -> None:
    cells = [distilled(8, 0.1, r=2)]
    with pytest.raises(ConfigError, match="no finished cell has the method 'zero_shot'"):
        best(cells, "zero_shot")
    with pytest.raises(ConfigError, match="no finished cell"):
        best([], "distillation")
    with pytest.raises(
        ConfigError, match="there is no evaluation set 'word'; mend: did you mean 'words'"
    ):
        best(cells, "distillation", "word")
