from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from instil.tasks.verbalizer import Verbalizer

VERBALIZER = TypeAdapter(Verbalizer)


def test_a_form_may_stand_alone_and_a_label_may_be_a_whole_number() -> None:
    read = VERBALIZER.validate_python(yaml.safe_load('{0: bad, 1: [good, "Yes"]}'))
    assert read == {"0": ("bad",), "1": ("good", "Yes")}
    assert list(read) == ["0", "1"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"a": "x"}, "at least two labels"),
        ({"a": "x", "b": []}, "no surface form"),
        ({"a": "x", "b": ""}, "must not be empty"),
        ({"a": "x", "b": " y"}, "begin or end with a space"),
        (
            {"a": ["x", "y"], "b": ["z", "x"]},
            "'a' and 'b' have the same surface form 'x'.*one label",
        ),
        (yaml.safe_load("{a: [Yes, yes], b: maybe}"), "quotation marks"),
        (yaml.safe_load("{a: Yes, b: maybe}"), "quotation marks"),
        (yaml.safe_load("{Yes: x, No: y}"), "quotation marks"),
        ({"a": 1, "b": "y"}, "valid"),
    ],
)
def test_a_verbalizer_that_cannot_work_is_refused(settings: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        VERBALIZER.validate_python(settings)
