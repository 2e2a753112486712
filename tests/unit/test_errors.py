from __future__ import annotations

import inspect
import re

import pytest

from instil import errors

LEAVES = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, errors.InstilError) and member is not errors.InstilError
]


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_leaf_tells_all_four_parts_and_resembles_a_standard_error(
    leaf: type[errors.InstilError],
) -> None:
    error = leaf("what is wrong", got="this", allowed="that", mend="do so")
    assert str(error) == "what is wrong; got: this; allowed: that; mend: do so"
    standard = [base for base in leaf.__bases__ if base is not errors.InstilError]
    assert len(standard) == 1
    assert standard[0].__module__ == "builtins"


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = re.findall(r"[├└]── (\w+) +\((\w+)\)", errors.__doc__ or "")
    real = {leaf.__name__: leaf.__bases__[1].__name__ for leaf in LEAVES}
    assert dict(drawn) == real


def test_status_two_is_for_input() -> None:
    assert errors.OverlapError.exit_status == 2
    assert errors.GateError.exit_status == 3
    assert errors.NotFiniteLossError.exit_status == 1


def test_a_hint_is_the_nearest_name_or_all_of_them() -> None:
    assert errors.did_you_mean("trian", ["test", "train"]) == "did you mean 'train'?"
    assert errors.did_you_mean("x", iter(["test", "train"])) == "known: 'test', 'train'"
