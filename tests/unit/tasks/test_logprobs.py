"""Log-probabilities in rows: those that a server told with its answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instil.tasks.logprobs import logprobs_of, steps_of
from instil.tasks.logs import Reading, read_pile, rows_of
from instil.tasks.places import read_place
from instil.tasks.rows import digest, read_rows


def told(*steps: tuple[tuple[str, float], ...]) -> dict[str, Any]:
    """As `choices[0].logprobs` of OpenAI's interface; the first pair of a step was written."""
    made = []
    for first, *others in steps:
        top = [{"token": token, "logprob": p, "bytes": None} for token, p in (first, *others)]
        made.append({**top[0], "top_logprobs": top})
    return {"content": made, "refusal": None}


def test_the_interface_of_openai_is_read() -> None:
    value = told((("Par", -0.1), ("Ly", -2.5)), (("is", -0.0000001),))
    text = logprobs_of(value)
    assert text is not None
    assert steps_of(text) == [[("Par", -0.1), ("Ly", -2.5)], [("is", 0.0)]]
    assert logprobs_of(json.loads(text)) == text
    assert logprobs_of(text) == text


def test_ids_are_numbers() -> None:
    text = logprobs_of(told((("token_id:17", -0.1), ("token_id:4", -3.0))))
    assert text is not None
    assert steps_of(text) == [[(17, -0.1), (4, -3.0)]]


@pytest.mark.parametrize(
    "value",
    [None, "", "high", 3, [], {}, {"content": None}, {"content": []}, {"tokens": ["a"]}, [[]],
     [["a"]], [[["a", "b"]]], [[[None, -1.0]]], {"content": [{"token": "a"}]}],
)  # fmt: skip
def test_other_values_are_no_log_probabilities(value: object) -> None:
    assert logprobs_of(value) is None


def test_rows_of_all_forms_keep_them(tmp_path: Path) -> None:
    compact = json.loads(logprobs_of(told((("4", -0.1), ("5", -2.5)))) or "")
    messages = [{"role": "user", "content": "2 + 2"}]
    answer = {"role": "assistant", "content": "4"}
    whole = {"choices": [{"message": answer, "logprobs": told((("4", -0.1), ("5", -2.5)))}]}
    records = [
        {"input": "2 + 2", "output": "4", "logprobs": compact},
        {"messages": [*messages, {**answer, "logprobs": compact}]},
        {"request": {"messages": messages}, "response": whole},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    reading = Reading(logprobs=True)
    pile = read_pile(read_place(path), "rows", reading, copies=True)
    rows = rows_of(pile.items, reading)
    assert [row.logprobs for row in rows] == [json.dumps(compact)] * 3
    unread = read_pile(read_place(path), "rows", Reading(), copies=True).items
    assert not any(row.logprobs for row in rows_of(unread, Reading()))  # they take much memory
    path.write_text(json.dumps({"input": "2 + 2", "logprobs": compact}) + "\n")
    (row,) = read_rows(path, need_output=False)
    assert row.logprobs is None  # there is no answer that they belong to


def test_rows_with_other_log_probabilities_are_other_rows(tmp_path: Path) -> None:
    rows = []
    for logprob in (-0.1, -0.2):
        path = tmp_path / "rows.jsonl"
        fields = {"input": "2 + 2", "output": "4", "logprobs": [[["4", logprob]]]}
        path.write_text(json.dumps(fields))
        rows.append(read_rows(path, need_output=True))
    assert digest(rows[0]) != digest(rows[1])
