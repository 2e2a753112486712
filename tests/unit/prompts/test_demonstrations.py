from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError
from tests.unit.tasks.test_split import FORMS, rows_of

from instil.errors import ConfigError
from instil.prompts.demonstrations import Demonstrator
from instil.recipe import sections
from instil.tasks.rows import Row, key


def demonstrator(
    pool: list[Row], *, seed: int = 0, prefix: str = "", **settings: Any
) -> Demonstrator:
    return Demonstrator(sections.Demonstrations(**settings), pool, prefix, FORMS, seed)


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
    with pytest.raises(ConfigError, match=r"demonstrations\.k is 6.*demonstrations is 5"):
        demonstrator(pool, k=6, balanced=balanced).contexts(0, rows_of("q", 1), "s")


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
    with pytest.raises(ValidationError, match="contexts: needs draw: per_query"):
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
    with pytest.raises(ConfigError, match=r"is 9.*demonstrations is 8.*the task itself has these"):
        writer(pool, in_order=True, k=9).contexts(0, queries, "s")
