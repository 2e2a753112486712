"""Word problems with a worked solution: GSM8K, and SVAMP as the out-of-domain set.

GSM8K: Cobbe et al. 2021 (arXiv:2110.14168).

SVAMP: Patel et al. 2021 (arXiv:2103.07191). Its problems are shorter, and many contain a number
that is not needed. A gold output is the number only. The local file has all 1,000 rows; the hub's
test split has 300 of them. So do not compare scores on the local file with scores on the hub's
split.

`prompt: wei` uses the demonstrations of Wei et al. 2022 (arXiv:2201.11903).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from instil.errors import FieldError
from instil.metrics.numbers import final_number, same_number
from instil.tasks.base import TaskData
from instil.tasks.formats import read_fields
from instil.tasks.free_text import QuestionTask
from instil.tasks.public_sets import NamedSets
from instil.tasks.rows import Row, key
from instil.tasks.source import Hub, TextSet, file_digest, read_set

_EXEMPLARS = "gsm8k/cot_8shot.jsonl"
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def _gsm8k(file: str, split: str) -> TextSet:
    return TextSet(file, Hub("openai/gsm8k", split, "main"))


class GSM8K(QuestionTask, NamedSets):
    """Which number answers the question? Answers are reasoning, then `#### N`."""

    sets: ClassVar[Mapping[str, TextSet]] = {
        "gsm8k_train": _gsm8k("gsm8k/train.jsonl", "train"),
        "gsm8k": _gsm8k("gsm8k/test.jsonl", "test"),
        "svamp": TextSet(
            "svamp/test.jsonl",
            Hub("ChilleD/SVAMP", "test"),
            hub_fields={"body": "Body", "question": "Question", "answer": "Answer"},
            question="{body} {question}",
            answer="#### {answer}",
        ),
    }

    name: Literal["gsm8k"] = "gsm8k"
    train: str = "gsm8k_train"
    in_domain: tuple[str, ...] = ("gsm8k",)
    out_of_domain: tuple[str, ...] = ("svamp",)
    prompt: Literal["train", "wei"] = Field(
        "train",
        description="demonstrations. train: sampled from the training set; wei: the first k of the eight of "
        "Wei et al. 2022, which need `folder`",
    )
    calculator: bool = Field(
        False,
        description="keep the annotations <<48/2=24>> in gold answers. They are calls of a calculator; "
        "without a calculator they only repeat the calculation",
    )
    flexible: bool = Field(
        True,
        description="if an answer marks no number, use its last number; false: such an answer is wrong",
    )

    @model_validator(mode="after")
    def _exemplars_need_a_folder(self) -> Self:
        if self.prompt == "wei" and self.folder is None:
            raise ValueError(
                f"prompt: wei needs the file {_EXEMPLARS} of a local copy; the hub does not have it. "
                "Set folder, or use prompt: train"
            )
        return self

    @property
    def exemplar_count(self) -> int | None:
        """See `QuestionTask.exemplar_count`."""
        return 8 if self.prompt == "wei" else None

    def exemplars(self) -> list[Row]:
        """See `QuestionTask.exemplars`."""
        if self.prompt == "train":
            return []
        path = self._exemplar_file()
        return self._rows("exemplars", read_fields(path), TextSet(str(path), Hub("", "")))

    def read(self) -> TaskData:
        """Reads the sets, without rows whose question is also an exemplar; see `TaskBase.read`."""
        read, shown = super().read(), {key(row) for row in self.exemplars()}

        def others(rows: list[Row]) -> list[Row]:
            return [row for row in rows if key(row) not in shown]

        return TaskData(
            others(read.train),
            {name: others(rows) for name, rows in read.in_domain.items()},
            {name: others(rows) for name, rows in read.out_of_domain.items()},
        )

    def right(self, written: str, gold_output: str) -> bool:
        """Whether the final numbers are the same; see `instil.tasks.numbers`."""
        return same_number(written, gold_output, flexible=self.flexible)

    def result(self, text: str) -> str:
        """The final number of a text, as text; empty if there is none."""
        number = final_number(text)
        return "" if number is None else f"{number.normalize():f}"

    def _read(self, name: str) -> list[Row]:
        known = self.sets[name]
        return self._rows(name, read_set(name, known, self.folder), known)

    def _output(self, answer: str, where: str) -> str:
        output = answer if self.calculator else _CALCULATOR.sub("", answer)
        if final_number(output, flexible=False) is None:
            raise FieldError(
                f"{where}: the gold answer does not mark its final number",
                got=repr(answer[-80:]),
                allowed="`#### 42` or `The answer is 42.` at the end",
                mend="correct the row or delete it",
            )
        return output

    def _exemplar_file(self) -> Path:
        assert self.folder is not None
        return self.folder / _EXEMPLARS

    def _sources(self) -> list[object]:
        shown = [file_digest(self._exemplar_file())] if self.prompt == "wei" else []
        return [*super()._sources(), *shown]
