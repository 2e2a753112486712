"""The prompts and users of the benchmark."""

from __future__ import annotations

import re

import pytest

from instil.bench.conversations import NAMES, Product
from instil.tasks.conversation import Message


@pytest.fixture(params=NAMES)
def product(request: pytest.FixtureRequest) -> Product:
    return Product.read(request.param)


def test_the_same_seed_gives_the_same_users(product: Product) -> None:
    learn, held_out = product.users(60, "learn"), product.users(40, "held_out")
    assert product.users(60, "learn") == learn
    assert product.users(30, "learn") == learn[:30]
    assert len({tuple(said) for said in learn}) == 60
    assert {len(said) for said in product.users(300, "learn")} == set(range(1, 9))
    assert not {tuple(said) for said in learn} & {tuple(said) for said in held_out}
    assert not any(
        "{" in text and "}" in text and "ok" not in text for said in learn for text in said
    )


def test_the_held_out_users_are_made_of_parts_of_their_own(product: Product) -> None:
    for kind in ("openings", "follow_ups", "foreign", "attacks"):
        assert not set(product.parts[kind]["learn"]) & set(product.parts[kind]["held_out"])
    for name, slot in product.parts["slots"].items():
        if isinstance(slot["learn"], list):
            assert not set(slot["learn"]) & set(slot["held_out"]), name
        for kind in ("openings", "follow_ups", "foreign", "attacks"):
            for split in ("learn", "held_out"):
                for template in product.parts[kind][split]:
                    assert set(re.findall(r"\{(\w+)\}", template)) <= {*product.parts["slots"]}


def test_the_prompt_stands_at_the_head(product: Product) -> None:
    system, *examples = product.head
    assert system == Message("system", product.system)
    assert [one.role for one in examples[:2]] == ["user", "assistant"]
    assert 500 < len(product.system.split()) < 1500
