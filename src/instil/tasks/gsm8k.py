"""Word problems whose answer is a worked solution: GSM8K, and SVAMP from elsewhere.

GSM8K: Cobbe et al. 2021 (arXiv:2110.14168). SVAMP: Patel et al. 2021 (arXiv:2103.07191), shorter problems, many of which hold a
number that is not needed; its gold outputs are the number alone. The local file holds all its 1,000 rows, the hub's test
split 300 of them: do not compare scores across the two. The other demonstrations: Wei et al. 2022 (arXiv:2201.11903).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from instil.errors import FieldError
from instil.tasks.base import TaskData
from instil.tasks.free_text import FreeText
from instil.tasks.numbers import final_number, same_number
from instil.tasks.public_sets import NamedSets
from instil.tasks.rows import Row, key, read_fields
from instil.tasks.source import Hub, TextSet, file_digest, read_set

_EXEMPLARS = "gsm8k/cot_8shot.jsonl"
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def _gsm8k(file: str, split: str) -> TextSet:
    return TextSet(file, Hub("openai/gsm8k", split, "main"))


class GSM8K(FreeText, NamedSets):
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
        description="demonstrations: train: rows of the training set, drawn; wei: the eight of Wei et al. 2022, "
        "of which the first k are taken; they need a folder",
    )
    calculator: bool = Field(
        False,
        description="keep the annotations <<48/2=24>> in gold answers: they are calls of a calculator, "
        "and where none answers they are a sum written twice",
    )
    flexible: bool = Field(
        True,
        description="an answer that marks no number counts by its last number; false: it is wrong",
    )

    @model_validator(mode="after")
    def _exemplars_are_at_hand(self) -> Self:
        if self.prompt == "wei" and self.folder is None:
            raise ValueError(
                f"prompt: wei reads {_EXEMPLARS} of a local copy, and the hub's sets do not hold it; "
                "set folder, or prompt: train"
            )
        return self

    @property
    def exemplar_count(self) -> int | None:
        """See `FreeText.exemplar_count`."""
        return 8 if self.prompt == "wei" else None

    def exemplars(self) -> list[Row]:
        """See `FreeText.exemplars`."""
        if self.prompt == "train":
            return []
        path = self._exemplar_file()
        return self._rows("exemplars", read_fields(path), TextSet(str(path), Hub("", "")))

    def read(self) -> TaskData:
        """Reads the sets, without rows that ask what an exemplar answers; see `TaskBase.read`."""
        read, shown = super().read(), {key(row) for row in self.exemplars()}

        def others(rows: list[Row]) -> list[Row]:
            return [row for row in rows if key(row) not in shown]

        return TaskData(
            others(read.train),
            {name: others(rows) for name, rows in read.in_domain.items()},
            {name: others(rows) for name, rows in read.out_of_domain.items()},
        )

    def right(self, written: str, gold_output: str) -> bool:
        """Whether the answer ends in the gold answer's number; see `instil.tasks.numbers`."""
        return same_number(written, gold_output, flexible=self.flexible)

    def _read(self, name: str) -> list[Row]:
        known = self.sets[name]
        return self._rows(name, read_set(name, known, self.folder), known)

    def _output(self, answer: str, where: str) -> str:
        output = answer if self.calculator else _CALCULATOR.sub("", answer)
        if final_number(output, flexible=False) is None:
            raise FieldError(
                f"{where}: the answer ends in no number",
                got=repr(answer[-80:]),
                allowed="`#### 42` or `The answer is 42.` at its end",
                mend="mend the row or drop it",
            )
        return output

    def _exemplar_file(self) -> Path:
        assert self.folder is not None
        return self.folder / _EXEMPLARS

    def _sources(self) -> list[object]:
        shown = [file_digest(self._exemplar_file())] if self.prompt == "wei" else []
        return [*super()._sources(), *shown]
