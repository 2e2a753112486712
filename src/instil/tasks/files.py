"""The task for the user's own rows and context, read from files; answers are free text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from instil.errors import ConfigError, FieldError, did_you_mean
from instil.tasks.base import TaskData
from instil.tasks.free_text import FreeText
from instil.tasks.metrics import METRICS
from instil.tasks.numbers import final_number
from instil.tasks.rows import Row, read_rows
from instil.tasks.source import file_digest

ROWS = "evaluation rows"
"""Name of the evaluation set if there is only one."""


class Files(FreeText):
    """The user's own rows and context, from files.

    A row has the field `input` and, if it is known, the field `output`. Files of rows are JSON
    Lines, CSV or Parquet.
    """

    name: Literal["files"] = "files"
    folder: Path | None = Field(
        None, description="folder that relative paths start from; null: the current folder"
    )
    inputs: Path | None = Field(
        None,
        description="file of rows to learn from; null: passed from Python, as `instil.distill` does",
    )
    eval: Path | dict[str, Path] | None = Field(
        None,
        description="file of evaluation rows, or name -> file for several sets; "
        "null: hold out a fifth of the inputs, at most 100",
    )
    demos: Path | None = Field(
        None, description="file of demonstrations: rows with input and output"
    )
    k: int | None = Field(None, ge=1, description="use only the first k demonstrations")
    instruction: Path | None = Field(None, description="text file with the instruction: what to do")
    document: Path | None = Field(
        None, description="text file with the document that the answers should come from"
    )
    metric: str = Field("exact_match", description="rule for right answers: exact_match or number")
    allow_overlap: bool = Field(
        False, description="allow evaluation rows that are also inputs or demonstrations"
    )

    @field_validator("metric")
    @classmethod
    def _is_known(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"there is no metric {metric!r}; {did_you_mean(metric, METRICS)}")
        return metric

    @property
    def local(self) -> bool:
        """Whether the rows are in local files."""
        return True

    def read(self, *, need_output: bool = False) -> TaskData:
        """Reads the files; see `TaskBase.read`.

        Args:
            need_output: Whether every row to learn from must have an output.

        Raises:
            ConfigError: `inputs` is not set.
        """
        if self.inputs is None:
            raise ConfigError(
                "the task `files` needs inputs",
                allowed="a .jsonl, .csv or .parquet file with a field `input`",
                mend="set task.inputs to the file",
            )
        inputs = read_rows(self.place(self.inputs), need_output=need_output)
        sets = {
            name: read_rows(self.place(path), need_output=True)
            for name, path in self._eval_files().items()
        }
        return TaskData(inputs, sets, {})

    def right(self, written: str, gold_output: str) -> bool:
        """Whether the answer is right according to the task's metric."""
        return METRICS[self.metric](written, gold_output)

    def check_gold(self, name: str, rows: Sequence[Row]) -> None:
        """Checks that an answer to each evaluation row can be right.

        Args:
            name: Name of the set, for the error message.
            rows: Its rows.

        Raises:
            FieldError: answers are compared by their number, and a gold output has none.
        """
        for number, row in enumerate(rows, start=1):
            if self.metric == "number" and row.output and final_number(row.output) is None:
                raise FieldError(
                    f"{name}, row {number}: the output has no number, so no answer can be right",
                    got=repr(row.output[-80:]),
                    mend="correct or delete the row, or leave out the metric `number`",
                )

    def result(self, text: str) -> str:
        """The answer without white space at its start and end."""
        return text.strip()

    def place(self, path: Path) -> Path:
        """The path of a file that the task names, from `folder` if it is set."""
        return self.folder / path if self.folder else path

    def _eval_files(self) -> dict[str, Path]:
        if self.eval is None:
            return {}
        return self.eval if isinstance(self.eval, dict) else {ROWS: self.eval}

    def _sources(self) -> list[object]:
        files = {
            "inputs": self.inputs,
            "demos": self.demos,
            "instruction": self.instruction,
            "document": self.document,
            **{f"eval {name}": path for name, path in self._eval_files().items()},
        }
        return [{name: file_digest(self.place(path)) for name, path in files.items() if path}]

    def content_fields(self) -> set[str]:
        """See `TaskBase.content_fields`."""
        return {"inputs", "eval", "demos", "instruction", "document"}
