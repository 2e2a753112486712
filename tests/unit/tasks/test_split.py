from __future__ import annotations

from typing import Any

import pytest

from instil.errors import ConfigError, ContextError, OverlapError
from instil.prompts.context import Context, FewShot
from instil.tasks import TaskData
from instil.tasks.rows import Row, key
from instil.tasks.split import EVALUATION_ROWS, Drawn, draw_rows, held_out_rows, split

SHOT = Context.of(FewShot([{"input": "shot", "output": "x"}]))


LABELS = ("good", "bad", "so-so")
FORMS = {"good": "Yes", "bad": "No", "so-so": "Well"}


def rows_of(name: str, number: int) -> list[Row]:
    return [Row(f"{name} {n}", LABELS[n % 3]) for n in range(number)]


def data_of(train: list[Row] | None = None, here: list[Row] | None = None) -> TaskData:
    return TaskData(
        rows_of("train", 60) if train is None else train,
        {"here": rows_of("here", 30) if here is None else here},
        {"there": rows_of("there", 20)},
    )


def drawn(data: TaskData | None = None, **changed: Any) -> Drawn:
    settings: dict[str, Any] = {"seed": 0, "training": 20, "pool": 30, "evaluation": {"rows": 10}}
    settings |= changed
    chosen = settings.pop("evaluation")
    settings |= {
        "evaluation": chosen.get("rows"),
        "out_of_domain": chosen.get("rows_out_of_domain"),
    }
    return draw_rows(data or data_of(), **settings)


def test_rows_are_drawn_from_where_they_should_be() -> None:
    data = data_of()
    rows = drawn(data)
    assert (len(rows.training), len(rows.pool), rows.left_out) == (20, 30, 0)
    assert {*rows.training} | {*rows.pool} <= {*data.train}
    assert [(one.name, one.domain, len(one.rows)) for one in rows.sets] == [
        ("here", "in", 10),
        ("there", "out", 10),
    ]
    assert {*rows.sets[0].rows} <= {*data.in_domain["here"]}
    assert {*rows.sets[1].rows} <= {*data.out_of_domain["there"]}
    assert all(len({*one.rows}) == 10 for one in rows.sets)


def test_draws_go_by_seed() -> None:
    assert drawn() == drawn()
    one, other = drawn(), drawn(seed=1)
    assert one.training != other.training
    assert one.sets[0].rows != other.sets[0].rows


def test_demonstrations_are_no_training_rows() -> None:
    rows = drawn()
    assert not {*map(key, rows.training)} & {*map(key, rows.pool)}


def test_a_repeated_input_is_not_in_the_pool_and_in_the_training_rows() -> None:
    twice = [
        Row(text, row.output) for row in rows_of("t", 30) for text in (row.input, row.input + " ")
    ]
    rows = drawn(data_of(twice))
    assert not {*map(key, rows.training)} & {*map(key, rows.pool)}


def test_more_training_rows_keep_those_that_were_there() -> None:
    assert drawn(training=40).training[:20] == drawn(training=20).training


def test_more_training_rows_leave_the_demonstrations_alone() -> None:
    assert drawn(training=21, pool=30).pool == drawn(training=20, pool=30).pool


def test_evaluation_rows_depend_on_the_seed_alone() -> None:
    expected = drawn().sets
    assert drawn(training=30, pool=5).sets == expected
    assert drawn(data_of(rows_of("other", 50))).sets == expected


def test_a_training_row_that_is_judged_on_is_left_out() -> None:
    leaks = [Row("HERE  3", "bad"), Row("there 7", "good"), *rows_of("train", 40)]
    rows = drawn(data_of(leaks), evaluation={"rows": 1000})
    assert rows.left_out == 2
    used = {key(row) for row in [*rows.training, *rows.pool]}
    assert not used & {key(row) for one in rows.sets for row in one.rows}


def test_all_rows_are_judged_on_where_there_are_few_and_500_where_not_said() -> None:
    many = data_of(here=rows_of("here", EVALUATION_ROWS + 7))
    assert [len(one.rows) for one in drawn(many, evaluation={}).sets] == [500, 20]
    out = {"rows": 10, "rows_out_of_domain": 5}
    assert [len(one.rows) for one in drawn(evaluation=out).sets] == [10, 5]
    assert drawn(evaluation=out).sets[0] == drawn().sets[0]
    assert [len(one.rows) for one in drawn(evaluation={"rows": 1000}).sets] == [30, 20]


@pytest.mark.parametrize("training", [60, 61])
def test_too_few_training_rows_are_refused(training: int) -> None:
    with pytest.raises(ConfigError, match=r"training\.rows is \d+.* has 60.*1 to 59"):
        drawn(training=training)
    assert len(drawn(training=59).pool) == 1


@pytest.mark.parametrize("left", [0, 1])
def test_training_rows_that_are_all_evaluation_rows_are_refused(left: int) -> None:
    here = rows_of("here", 30)
    extra = rows_of("other", left)
    with pytest.raises(ConfigError, match=r"30 of its 3[01] rows are also evaluation rows"):
        drawn(data_of([*here, *extra], here), evaluation={"rows": 30}, training=None)


def test_validation_rows_are_of_no_other_use() -> None:
    here = rows_of("here", 40)
    data = data_of([*rows_of("row", 100), *here[:10]], here)

    def keys(rows: list[Row]) -> set[str]:
        return {row.input for row in rows}

    plain = drawn(data, training=60, pool=1000)
    watched = drawn(data, training=60, pool=1000, validation=25)
    assert plain.validation == []
    assert len(keys(watched.validation)) == 25
    others = [watched.training, watched.pool, *(one.rows for one in watched.sets)]
    assert not any(keys(watched.validation) & keys(rows) for rows in others)
    assert (watched.training, watched.sets) == (plain.training, plain.sets)
    left = len(plain.pool)
    assert watched.pool == plain.pool[: left - 25]
    assert len(drawn(data, training=60, pool=1000, validation=left - 1).pool) == 1
    with pytest.raises(ConfigError, match=rf"validation_rows is {left}, but {left} rows"):
        drawn(data, training=60, validation=left)


def test_rows_that_are_judged_on_take_no_other_row_away() -> None:
    train = rows_of("train", 60)
    plain = drawn(data_of(train))
    shared = plain.training[3]
    fewer = drawn(data_of(train, here=[*rows_of("here", 9), shared]))
    assert fewer.left_out == 1
    assert fewer.training[:19] == [row for row in plain.training if row != shared]
    assert fewer.pool == plain.pool


def test_inputs_of_their_own_are_learnt_from_and_shown_by_none() -> None:
    train, here = rows_of("train", 40), rows_of("here", 10)
    inputs = [Row(row.input) for row in [*rows_of("raw", 30), train[0], here[0]]]
    shown = [*train, here[1]]
    rows = drawn(TaskData(shown, {"here": here}, {}, inputs), training=30, pool=50)
    assert {row.input for row in rows.training} == {row.input for row in inputs[:-2]}
    assert {row.output for row in rows.training} == {None}
    assert {*rows.pool} == {*train}  # what is labelled is scarce, so it is not learnt from
    assert rows.left_out == 2  # of both kinds
    fewer = drawn(TaskData(shown, {"here": here}, {}, inputs), training=30, pool=5)
    assert fewer.pool == rows.pool[:5]
    with pytest.raises(ConfigError, match="is 31, but 30 unlabelled rows are left"):
        drawn(TaskData(train, {"here": here}, {}, inputs), training=31, pool=50)
    one = drawn(TaskData(train[:1], {"here": here}, {}, inputs), training=30)
    assert one.pool == train[:1]


def test_a_held_out_split_leaks_nothing() -> None:
    inputs = [Row(f"Input {n % 7}") for n in range(30)] + [Row("INPUT  3"), Row("shot")]
    rows = split(inputs, None, SHOT.demonstrations, seed=0)
    learnt, held_out = {key(r) for r in rows.inputs}, {key(r) for r in rows.sets[0].rows}
    assert held_out
    assert not learnt & held_out
    assert "shot" not in held_out
    assert len(rows.inputs) + len(rows.sets[0].rows) == len(inputs)


def test_a_fifth_but_at_most_a_hundred_rows_are_held_out_by_seed() -> None:
    few, many = ([Row(str(n)) for n in range(size)] for size in (50, 1000))
    assert len(split(few, None, SHOT.demonstrations, seed=0).sets[0].rows) == 10
    assert len(split(many, None, SHOT.demonstrations, seed=0).sets[0].rows) == 100
    assert split(few, None, SHOT.demonstrations, seed=0) == split(
        few, None, SHOT.demonstrations, seed=0
    )
    assert split(few, None, SHOT.demonstrations, seed=0) != split(
        few, None, SHOT.demonstrations, seed=1
    )


def test_one_input_is_too_few_to_hold_any_out() -> None:
    with pytest.raises(ContextError, match="at least 2 different inputs"):
        split([Row("a"), Row("A "), Row("shot")], None, SHOT.demonstrations, seed=0)


@pytest.mark.parametrize("leak", ["shot", "SHOT", "a"])
def test_leaks_are_refused_unless_allowed(leak: str) -> None:
    with pytest.raises(OverlapError):
        split([Row("a")], {"here": [Row(leak, "x")]}, SHOT.demonstrations, seed=0)
    assert split(
        [Row("a")], {"here": [Row(leak, "x")]}, SHOT.demonstrations, seed=0, allow_overlap=True
    ).sets


def test_every_set_is_checked_for_leaks_and_keeps_its_name() -> None:
    sets = {"here": [Row("b", "x")], "there": [Row("c", "y")]}
    rows = split([Row("a")], sets, [], seed=0)
    assert [(one.name, one.domain, one.rows) for one in rows.sets] == [
        ("here", "in", [Row("b", "x")]),
        ("there", "in", [Row("c", "y")]),
    ]
    with pytest.raises(OverlapError, match="evaluation row 1: 'c'"):
        split([Row("c")], sets, [], seed=0)


def test_rows_that_watch_a_student_are_not_learnt_and_go_by_seed() -> None:
    inputs = [Row(f"Input {n % 9}") for n in range(20)]
    left, watched = held_out_rows(inputs, 3, seed="0 validation")
    assert len({key(row) for row in watched}) == 3
    assert not {key(row) for row in watched} & {key(row) for row in left}
    assert len(left) + len(watched) == 20
    assert held_out_rows(inputs, 3, seed="0 validation") == (left, watched)
    assert held_out_rows(inputs, 3, seed="1 validation") != (left, watched)
    assert held_out_rows(inputs, 0, seed="0 validation") == (inputs, [])
    with pytest.raises(ConfigError, match="is 9, but there are 9 different inputs"):
        held_out_rows(inputs, 9, seed="0 validation")
