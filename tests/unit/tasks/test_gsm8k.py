from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from instil.errors import DataFileError, FieldError
from instil.metrics.numbers import final_number
from instil.tasks import GSM8K, TASKS, Task
from instil.tasks.free_text import FreeText
from instil.tasks.rows import Row

ROOT = Path(__file__).parent.parent.parent.parent
DATA = Path(os.environ.get("INSTIL_DATA", ROOT.parent / "shared" / "data"))
PEAR = {"question": "Two pears and two more?", "answer": "2+2=<<2+2=4>>4 pears\n#### 4"}
PLUM = {"question": "No plums?", "answer": "There are none.\n#### 0"}
SHOTS = [
    {"question": f"{n} and 0?", "answer": f"{n} + 0 = {n}. The answer is {n}."} for n in range(8)
]


def write(folder: Path, file: str, *rows: dict[str, Any]) -> None:
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "gsm8k/train.jsonl", PEAR, PLUM)
    write(tmp_path, "gsm8k/test.jsonl", {"question": "Why 7?", "answer": "So.\n#### 1,007"})
    row = {"id": "chal-1", "body": "He had 3", "question": "How many?", "answer": "3", "type": "S"}
    write(tmp_path, "svamp/test.jsonl", row)
    write(tmp_path, "gsm8k/cot_8shot.jsonl", *SHOTS)
    return tmp_path


def test_rows_are_questions_and_whole_gold_answers(folder: Path) -> None:
    read = GSM8K(folder=folder).read()
    assert read.train == [
        Row("Two pears and two more?", "2+2=4 pears\n#### 4"),
        Row("No plums?", "There are none.\n#### 0"),
    ]
    assert read.in_domain == {"gsm8k": [Row("Why 7?", "So.\n#### 1,007")]}
    assert read.out_of_domain == {"svamp": [Row("He had 3 How many?", "#### 3")]}


def test_calculator_annotations_are_kept_if_asked_for(folder: Path) -> None:
    read = GSM8K(folder=folder, calculator=True).read()
    assert read.train[0].output == PEAR["answer"]


def test_the_pattern_knows_the_whole_question_and_every_other_field(folder: Path) -> None:
    task = GSM8K(folder=folder, pattern="Question: {question}\nAnswer:")
    read = task.read()
    assert read.train[1].input == "Question: No plums?\nAnswer:"
    assert read.out_of_domain["svamp"][0].input == "Question: He had 3 How many?\nAnswer:"
    only = {"train": "svamp", "out_of_domain": ()}
    task = GSM8K.model_validate({"folder": folder, "pattern": "{id} {question}", **only})
    with pytest.raises(FieldError, match=r"test\.jsonl, line 1: there is no field 'id'"):
        task.read()
    with pytest.raises(FieldError, match=r"'answer'.*must not show its own answer"):
        GSM8K(folder=folder, pattern="{question} {answer}").read()


def test_an_answer_is_right_if_its_final_number_is(folder: Path) -> None:
    task, gold = GSM8K(folder=folder), "So.\n#### 1,007"
    assert task.right("1,000 + 7\n#### 1007.00", gold)
    assert task.right("It is 1007", gold)
    assert not task.right("#### 7", gold)
    assert not task.right("", gold)
    assert not GSM8K(folder=folder, flexible=False).right("It is 1007", gold)


@pytest.mark.parametrize("answer", ["Many.", "#### many", "It is 7"])
def test_a_gold_answer_without_a_marked_number_is_refused(folder: Path, answer: str) -> None:
    write(folder, "gsm8k/test.jsonl", {"question": "Why?", "answer": answer})
    with pytest.raises(
        FieldError, match=r"test\.jsonl, line 1: the gold answer does not mark its final number"
    ):
        GSM8K(folder=folder).read()


@pytest.mark.parametrize("answer", [" ", None])
def test_a_gold_answer_that_is_missing_is_refused(folder: Path, answer: str | None) -> None:
    row = {"body": "b", "question": "q", "answer": answer}
    write(folder, "svamp/test.jsonl", row)
    with pytest.raises(FieldError, match=r"svamp.*line 1.*'answer'"):
        GSM8K(folder=folder).read()


def test_sets_that_are_not_known_or_not_there_are_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match="did you mean 'svamp'"):
        GSM8K(out_of_domain=("svmap",))
    (folder / "svamp/test.jsonl").unlink()
    with pytest.raises(DataFileError, match=r"svamp.*ChilleD/SVAMP"):
        GSM8K(folder=folder).read()
    write(folder, "svamp/test.jsonl", {})
    (folder / "svamp/test.jsonl").write_text("\n")
    with pytest.raises(DataFileError, match="'svamp' has no rows"):
        GSM8K(folder=folder).read()


def test_the_published_demonstrations_come_in_their_order(folder: Path) -> None:
    task = GSM8K(folder=folder, prompt="wei")
    assert task.exemplar_count == 8
    assert task.exemplars() == [Row(shot["question"], shot["answer"]) for shot in SHOTS]
    asked = GSM8K(folder=folder, prompt="wei", pattern="Q: {question}").exemplars()
    assert asked[0].input == "Q: 0 and 0?"
    drawn = GSM8K(folder=folder)
    assert (drawn.exemplar_count, drawn.exemplars()) == (None, [])
    with pytest.raises(ValidationError, match=r"cot_8shot\.jsonl of a local copy.*prompt: train"):
        GSM8K(prompt="wei")
    (folder / "gsm8k/cot_8shot.jsonl").unlink()
    with pytest.raises(DataFileError, match="no such file"):
        task.exemplars()


def test_a_row_that_is_an_exemplar_is_in_no_set(folder: Path) -> None:
    write(folder, "gsm8k/train.jsonl", PEAR, {"question": " 3 AND 0?", "answer": "#### 3"})
    write(folder, "gsm8k/test.jsonl", PLUM, {"question": "3 and 0?", "answer": "#### 3"})
    assert len(GSM8K(folder=folder).read().train) == 2
    read = GSM8K(folder=folder, prompt="wei").read()
    assert [row.input for row in read.train] == [PEAR["question"]]
    assert [row.input for row in read.in_domain["gsm8k"]] == [PLUM["question"]]


def test_the_digest_follows_content_and_settings_but_not_the_place(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in folder.rglob("*.jsonl"):
        write(elsewhere, str(path.relative_to(folder)))
        (elsewhere / path.relative_to(folder)).write_bytes(path.read_bytes())
    here, wei = GSM8K(folder=folder), GSM8K(folder=folder, prompt="wei")
    before = [here.digest(), wei.digest()]
    assert GSM8K(folder=elsewhere).digest() == before[0]
    assert len({*before, GSM8K().digest(), GSM8K(folder=folder, calculator=True).digest()}) == 4
    write(folder, "gsm8k/cot_8shot.jsonl", *SHOTS[:7])
    assert (here.digest() == before[0], wei.digest() == before[1]) == (True, False)


def test_a_task_is_told_by_its_name_and_written_as_it_was_read(folder: Path) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Task)
    for task in (GSM8K(), GSM8K(folder=folder, prompt="wei")):
        assert adapter.validate_python(task.model_dump(mode="json")) == task


def test_a_task_says_what_its_answers_are() -> None:
    assert {name for name, task in TASKS.items() if task.answers == "text"} == {"files", "gsm8k"}
    for task in TASKS.values():
        assert (task.answers == "text") == issubclass(task, FreeText)


@pytest.mark.skipif(
    not DATA.is_dir(), reason="no local copy of the sets: name its folder in INSTIL_DATA"
)
def test_every_set_of_the_local_copy_is_read() -> None:
    task = GSM8K(folder=DATA, prompt="wei")
    read = task.read()
    counts = [
        len(rows) for rows in (read.train, read.in_domain["gsm8k"], read.out_of_domain["svamp"])
    ]
    assert counts == [7473, 1319, 1000]
    assert [final_number(row.output or "") for row in task.exemplars()] == [
        6,
        5,
        39,
        8,
        9,
        29,
        33,
        8,
    ]
    for row in (*read.train, *read.in_domain["gsm8k"]):
        assert row.output is not None
        assert "<<" not in row.output
        mark = row.output.rpartition("#### ")[2].replace(",", "")
        assert str(final_number(row.output)) == mark
