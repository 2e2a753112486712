"""The task for the user's own rows and context, read from files; answers are free text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from instil.errors import ConfigError
from instil.metrics.exact import exact
from instil.tasks.base import TaskData
from instil.tasks.conversation import Turns
from instil.tasks.free_text import FreeText
from instil.tasks.logs import OnBadRow, Pile, Reading, Thinking, read_pile, rows_of
from instil.tasks.places import place_digest, read_place

ROWS = "evaluation rows"
"""Name of the evaluation set if there is only one."""


class Files(FreeText):
    """The user's own rows and context, from files.

    A row has the field `input` and, if it is known, the field `output`. Or it is a conversation, in
    one of the forms that `instil.tasks.messages` knows. Rows are read from JSON Lines, JSON, CSV,
    TSV, Parquet or Arrow.
    """

    name: Literal["files"] = "files"
    folder: Path | None = Field(
        None, description="folder that relative paths start from; null: the current folder"
    )
    inputs: Path | None = Field(
        None,
        description="file of rows to learn from, a folder of files, a pattern such as logs/*.jsonl, or "
        "hub:OWNER/NAME:SPLIT; null: passed from Python, as `instil.distill` does",
    )
    fields: dict[str, str] = Field(
        {}, description="name of a field -> its name in the files, where they differ"
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
    context_from_logs: bool = Field(
        False,
        description="take the context out of the conversations: their system message, and the example "
        "turns that all of them begin with. A conversation that begins otherwise has a context of "
        "its own",
    )
    student_system: str | None = Field(
        None, description="a short system prompt that the student reads, too, in place of none"
    )
    bake_tools: bool = Field(
        False,
        description="leave the definitions of tools out of the student's prompt: it learns to call "
        "them without",
    )
    turns: Turns = Field(
        "all",
        description="which answers of a conversation are learnt: all, the last or the first. An "
        "answer with weight: 0 is not learnt",
    )
    thinking: Thinking = Field(
        "learn",
        description="what the assistant thought before a logged answer. learn: it belongs to the "
        "answer. drop: it is left out. forbid: such a row cannot be used",
    )
    on_bad_row: OnBadRow | None = Field(
        None,
        description="error: a row that cannot be used ends the run. drop: it is left out, and listed "
        "in dropped.jsonl. null: error for up to 1,000 rows, else drop",
    )
    allow_overlap: bool = Field(
        False, description="allow evaluation rows that are also inputs or demonstrations"
    )

    @property
    def local(self) -> bool:
        """Whether the rows are in local files."""
        return True

    def read(self, *, need_output: bool = False) -> TaskData:
        """Reads the files; see `TaskBase.read`. Conversations become a row for each answer.

        Args:
            need_output: Whether every row to learn from must have an output.
        """
        reading = self.reading(gold=need_output)
        inputs, sets = self.piles(need_output=need_output)
        of_sets = {name: rows_of(pile.items, reading) for name, pile in sets.items()}
        return TaskData(rows_of(inputs.items, reading), of_sets, {})

    def reading(self, *, gold: bool, evaluation: bool = False, logprobs: bool = False) -> Reading:
        """How rows are read.

        Args:
            gold: Whether the gold outputs are learnt.
            evaluation: Whether these are evaluation rows, which have outputs.
            logprobs: Whether log-probabilities are kept that came with answers.
        """
        return Reading(
            self.fields,
            self.turns,
            self.thinking,
            self.on_bad_row,
            need_output=gold or evaluation,
            open_end=not gold,
            logprobs=logprobs,
        )

    def piles(self, *, need_output: bool, logprobs: bool = False) -> tuple[Pile, dict[str, Pile]]:
        """Reads the inputs and the evaluation sets.

        Args:
            need_output: Whether every row to learn from must have an output.
            logprobs: Whether log-probabilities are kept that came with answers.

        Raises:
            ConfigError: `inputs` is not set.
            DataFileError: a file is missing or empty.
            FieldError: a row cannot be used.
        """
        if self.inputs is None:
            raise ConfigError(
                "the task `files` needs inputs",
                allowed="a file of rows with a field `input`, or of conversations",
                mend="set task.inputs to the file",
            )
        inputs = self._pile(self.inputs, self.reading(gold=need_output, logprobs=logprobs))
        reading = self.reading(gold=need_output, evaluation=True, logprobs=logprobs)
        return inputs, {
            name: self._pile(path, reading) for name, path in self._eval_files().items()
        }

    def _pile(self, place: Path, reading: Reading) -> Pile:
        place = self.place(place)
        return read_pile(read_place(place), str(place), reading)

    def right(self, written: str, gold_output: str) -> bool:
        """Whether the answer is the gold output, word by word."""
        return exact(written, gold_output)

    def result(self, text: str) -> str:
        """The answer without white space at its start and end."""
        return text.strip()

    def place(self, path: Path) -> Path:
        """The path of a file that the task names, from `folder` if it is set."""
        on_hub = str(path).startswith("hub:")
        return self.folder / path if self.folder and not on_hub else path

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
        return [{name: place_digest(self.place(path)) for name, path in files.items() if path}]

    def content_fields(self) -> set[str]:
        """See `TaskBase.content_fields`."""
        return {"inputs", "eval", "demos", "instruction", "document"}
