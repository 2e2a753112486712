from __future__ import annotations

import pytest

from instil.errors import ContextError, OverlapError
from instil.prompts.context import Context, FewShot
from instil.tasks.rows import Row, key
from instil.tasks.split import split

SHOT = Context.of(FewShot([{"input": "shot", "output": "x"}]))


def test_a_held_out_split_leaks_nothing() -> None:
    inputs = [Row(f"Input {n % 7}") for n in range(30)] + [Row("INPUT  3"), Row("shot")]
    rows = split(inputs, None, SHOT.demonstrations, seed=0)
    learnt, held_out = {key(r) for r in rows.inputs}, {key(r) for r in rows.evaluation}
    assert held_out
    assert not learnt & held_out
    assert "shot" not in held_out
    assert len(rows.inputs) + len(rows.evaluation) == len(inputs)


def test_a_fifth_but_at_most_a_hundred_rows_are_held_out_by_seed() -> None:
    few, many = ([Row(str(n)) for n in range(size)] for size in (50, 1000))
    assert len(split(few, None, SHOT.demonstrations, seed=0).evaluation) == 10
    assert len(split(many, None, SHOT.demonstrations, seed=0).evaluation) == 100
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
        split([Row("a")], [Row(leak, "x")], SHOT.demonstrations, seed=0)
    assert split(
        [Row("a")], [Row(leak, "x")], SHOT.demonstrations, seed=0, allow_overlap=True
    ).evaluation
