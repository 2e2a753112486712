"""Every family of models gives right numbers, in the way that the table in the docs says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.families import FAMILIES, MOST_APART, Family, judge, row

TABLE = Path(__file__).parents[2] / "docs/reference/model-families.md"
# One family of each kind of trouble. The others are tested in the slow tier.
FAST = ("GPT-Neo", "MPT", "Qwen 3.5", "Mamba", "Gemma 2", "Granite 3", "gpt-oss")


@pytest.mark.filterwarnings("ignore")  # of the libraries, on models of unusual size
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(one, id=one.title, marks=() if one.title in FAST else pytest.mark.slow)
        for one in FAMILIES
    ],
)
def test_a_family_gives_right_numbers_in_the_way_that_the_table_says(
    family: Family, tmp_path: Path
) -> None:
    family.build(tmp_path)
    verdict = judge(tmp_path)
    for what, most in MOST_APART.items():
        assert verdict.errors[what] <= most, what
    assert row(family, verdict) in TABLE.read_text(encoding="utf-8").splitlines()
