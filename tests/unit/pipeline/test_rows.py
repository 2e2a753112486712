from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from instil.errors import ConfigError
from instil.prompts.demonstrations import Demonstrator
from instil.recipe import sections
from instil.tasks import TaskData
from instil.tasks.rows import Row, key
from instil.tasks.split import EVALUATION_ROWS, Drawn, draw_rows

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


def demonstrator(
    pool: list[Row], *, seed: int = 0, prefix: str = "", **settings: Any
) -> Demonstrator:
    return Demonstrator(sections.Demonstrations(**settings), pool, prefix, FORMS, seed)


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
    with pytest.raises(ConfigError, match=r"training\.rows: \d+ asked for.* has 60.*1 to 59"):
        drawn(training=training)
    assert len(drawn(training=59).pool) == 1


@pytest.mark.parametrize("balanced", [True, False])
def test_a_query_is_never_among_its_own_demonstrations(balanced: bool) -> None:
    pool = rows_of("row", 9)
    queries = [Row(row.input.upper() + "  ", row.output) for row in pool]
    contexts = demonstrator(pool, k=6, draw="per_query", balanced=balanced).contexts(
        0, queries, "s"
    )
    for query, context in zip(queries, contexts, strict=True):
        assert len({row.input for row in context.demonstrations}) == 6
        assert key(query) not in map(key, context.demonstrations)
    assert len({context.digest() for context in contexts}) > 1


@pytest.mark.parametrize(
    "balanced",
    [
        True,
        pytest.param(
            False,
        ),
    ],
)
def test_a_query_that_the_pool_holds_twice_leaves_enough_demonstrations(balanced: bool) -> None:
    pool = [Row("Q", "good"), Row("q", "good"), Row("q ", "bad"), *rows_of("row", 3)]
    one = demonstrator(pool, k=3, draw="per_query", balanced=balanced)
    for context in one.contexts(0, [Row("q", "good")] * 20, "s"):
        assert len(context.demonstrations) == 3
        assert "q" not in map(key, context.demonstrations)


@pytest.mark.parametrize("k", [0, 1, 2, 3, 7, 9])
@pytest.mark.parametrize("draw", ["fixed", "per_query"])
def test_balanced_demonstrations_hold_as_many_of_each_label(k: int, draw: str) -> None:
    pool = [*rows_of("row", 12), *[Row(f"more {n}", "good") for n in range(40)]]
    contexts = demonstrator(pool, k=k, draw=draw).contexts(0, rows_of("q", 10), "s")
    for context in contexts:
        counts = Counter(row.output for row in context.demonstrations)
        assert sum(counts.values()) == k
        assert max(counts.values(), default=0) <= -(-k // 3)
        assert set(counts) <= set(FORMS.values())


def test_a_rare_label_leaves_its_place_to_the_others() -> None:
    pool = [Row("only", "bad"), *[Row(f"more {n}", "good") for n in range(40)]]
    (context,) = demonstrator(pool, k=8).contexts(0, rows_of("q", 1), "s")
    assert Counter(row.output for row in context.demonstrations) == {"Yes": 7, "No": 1}


def test_unbalanced_demonstrations_are_as_the_pool_is() -> None:
    pool = [Row("only", "bad"), *[Row(f"more {n}", "good") for n in range(400)]]
    (context,) = demonstrator(pool, k=8, balanced=False).contexts(0, rows_of("q", 1), "s")
    assert Counter(row.output for row in context.demonstrations) == {"Yes": 8}


def test_demonstrations_show_the_first_form_of_their_own_label() -> None:
    pool = rows_of("row", 30)
    answers = {row.input: FORMS[row.output or ""] for row in pool}
    (context,) = demonstrator(pool, k=12, prefix="Judge.").contexts(0, rows_of("q", 1), "s")
    assert all(answers[row.input] == row.output for row in context.demonstrations)
    assert context.instruction == "Judge."
    assert demonstrator(pool, k=1).contexts(0, rows_of("q", 1), "s")[0].instruction is None


def test_shuffled_answers_are_the_same_answers_at_other_demonstrations() -> None:
    pool, query = rows_of("row", 60), rows_of("q", 1)
    (gold,) = demonstrator(pool, k=12).contexts(0, query, "s")
    (shuffled,) = demonstrator(pool, k=12, answers="shuffled").contexts(0, query, "s")
    assert [row.input for row in shuffled.demonstrations] == [r.input for r in gold.demonstrations]
    before, after = ([row.output for row in one.demonstrations] for one in (gold, shuffled))
    assert sorted(map(str, after)) == sorted(map(str, before))
    assert after != before


def test_labels_stand_in_no_fixed_order() -> None:
    """A context whose labels always come in turn would teach the turn."""
    contexts = demonstrator(rows_of("row", 60), k=6, draw="per_query").contexts(
        0, rows_of("q", 40), "s"
    )
    assert len({tuple(row.output for row in c.demonstrations) for c in contexts}) > 10


@pytest.mark.parametrize("draw", ["fixed", "per_query"])
def test_contexts_go_by_seed_and_number(draw: str) -> None:
    pool, queries = rows_of("row", 60), rows_of("q", 3)

    def contexts(number: int, name: str = "s", seed: int = 0) -> Any:
        return demonstrator(pool, k=6, draw=draw, seed=seed).contexts(number, queries, name)

    assert contexts(0) == contexts(0)
    assert contexts(0) != contexts(1)
    assert contexts(0) != contexts(0, seed=1)
    # A fixed context is the same wherever it is read.
    assert (contexts(0, "other") == contexts(0)) == (draw == "fixed")
    assert (len(set(contexts(0))) == 1) == (draw == "fixed")


@pytest.mark.parametrize("balanced", [True, False])
def test_more_demonstrations_than_the_pool_holds_are_refused(balanced: bool) -> None:
    pool = rows_of("row", 5)
    one = demonstrator(pool, k=5, balanced=balanced)
    assert len(one.contexts(0, rows_of("q", 1), "s")[0].demonstrations) == 5
    with pytest.raises(ConfigError, match=r"demonstrations\.k: 6 asked for.*pool has 5 rows"):
        demonstrator(pool, k=6, balanced=balanced).contexts(0, rows_of("q", 1), "s")


@pytest.mark.parametrize("left", [0, 1])
def test_training_rows_that_are_all_evaluation_rows_are_refused(left: int) -> None:
    here = rows_of("here", 30)
    extra = rows_of("other", left)
    with pytest.raises(ConfigError, match=r"30 of its 3[01] rows are evaluation rows, too"):
        drawn(data_of([*here, *extra], here), evaluation={"rows": 30}, training=None)


def solved(number: int) -> list[Row]:
    """Rows without labels: each has its own written answer."""
    return [Row(f"row {n}", f"{n} is {n}\n#### {n}") for n in range(number)]


def writer(pool: list[Row], *, in_order: bool = False, **settings: Any) -> Demonstrator:
    return Demonstrator(sections.Demonstrations(**settings), pool, "", {}, 0, in_order=in_order)


@pytest.mark.parametrize("draw", ["fixed", "per_query"])
def test_written_answers_are_shown_as_they_are(draw: str) -> None:
    pool = solved(30)
    contexts = writer(pool, k=8, draw=draw).contexts(0, pool[:10], "s")
    for query, context in zip(pool[:10], contexts, strict=True):
        assert len({*context.demonstrations}) == 8
        assert {*context.demonstrations} <= {*pool}
        if draw == "per_query":
            assert query not in context.demonstrations
    assert (len({context.digest() for context in contexts}) == 1) == (draw == "fixed")
    assert writer(pool, k=8, draw=draw).contexts(0, pool[:10], "s") == contexts


def test_a_few_contexts_are_dealt_out_among_the_queries() -> None:
    pool, queries = solved(30), [Row(f"query {n}") for n in range(7)]
    few = writer(pool, k=8, draw="per_query", contexts=3)
    contexts = few.contexts(0, queries, "s")
    assert contexts[:3] * 2 == contexts[:6]
    assert contexts[6] == contexts[0]
    assert len({context.digest() for context in contexts}) == 3
    assert few.contexts(0, queries, "elsewhere") == contexts
    assert not {c.digest() for c in few.contexts(1, queries, "s")} & {c.digest() for c in contexts}
    with pytest.raises(ValidationError, match="contexts: only with draw: per_query"):
        sections.Demonstrations(contexts=3)


def test_shuffled_written_answers_stand_at_other_questions() -> None:
    pool, query = solved(30), solved(1)
    (gold,) = writer(pool, k=8).contexts(0, query, "s")
    (shuffled,) = writer(pool, k=8, answers="shuffled").contexts(0, query, "s")
    assert [row.input for row in shuffled.demonstrations] == [r.input for r in gold.demonstrations]
    assert {r.output for r in shuffled.demonstrations} == {r.output for r in gold.demonstrations}
    assert shuffled != gold


def test_demonstrations_in_order_are_the_first_k() -> None:
    pool, queries = solved(8), [Row("a"), Row("b")]
    for k in (0, 3, 8):
        contexts = writer(pool, in_order=True, k=k).contexts(0, queries, "s")
        assert [list(context.demonstrations) for context in contexts] == [pool[:k]] * 2
    (shuffled,) = writer(pool, in_order=True, k=8, answers="shuffled").contexts(0, queries[:1], "s")
    assert [row.input for row in shuffled.demonstrations] == [row.input for row in pool]
    assert [row.output for row in shuffled.demonstrations] != [row.output for row in pool]
    with pytest.raises(ConfigError, match=r"9 asked for.*has 8 rows.*the task brings these"):
        writer(pool, in_order=True, k=9).contexts(0, queries, "s")


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
    with pytest.raises(ConfigError, match=rf"validation_rows: {left} asked for, and {left} rows"):
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
    with pytest.raises(ConfigError, match="31 asked for, and 30 unlabelled rows are left"):
        drawn(TaskData(train, {"here": here}, {}, inputs), training=31, pool=50)
    one = drawn(TaskData(train[:1], {"here": here}, {}, inputs), training=30)
    assert one.pool == train[:1]
