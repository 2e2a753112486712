from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instil.errors import ContextError, DataFormatError, FieldError
from instil.prompts.context import Context, Document, FewShot, Instruction
from instil.tasks.files import Files
from instil.tasks.rows import Row

SHOTS = [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]


def test_k_takes_the_first_demonstrations() -> None:
    assert FewShot(SHOTS, k=1).demonstrations == (Row("a", "b"),)
    assert len(FewShot(SHOTS).demonstrations) == 2


@pytest.mark.parametrize("k", [0, 3, -1])
def test_k_beyond_the_demonstrations_is_refused(k: int) -> None:
    with pytest.raises(ContextError, match=f"k = {k}.*demonstrations is 2.*allowed: 1 to 2"):
        FewShot(SHOTS, k=k)


def test_a_demonstration_without_output_is_refused() -> None:
    with pytest.raises(FieldError, match="demonstrations, row 1"):
        FewShot([{"input": "a"}])


def test_parts_join_in_any_order() -> None:
    parts = [Instruction(" do it "), FewShot(SHOTS), Document("long text\n")]
    context = Context.of(parts)
    assert context == Context.of(parts[::-1])
    assert context.preamble == "long text\n\ndo it"
    assert context.digest() != Context.of(parts[:2]).digest()


def test_nothing_and_two_of_a_kind_and_empty_parts_are_refused() -> None:
    with pytest.raises(ContextError, match="no context"):
        Context.of([])
    with pytest.raises(ContextError, match="two parts"):
        Context.of([Instruction("a"), Instruction("b")])
    with pytest.raises(ContextError, match="instruction part of the context is empty"):
        Context.of(Instruction(" \n"))


def test_line_ends_of_a_file_are_no_part_of_the_context(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"One.\r\nTwo.\r\n")
    assert Context.read(Files(instruction=tmp_path / "x.txt")).instruction == "One.\nTwo."


def test_half_a_character_is_refused() -> None:
    with pytest.raises(DataFormatError, match="document part of the context contains half a char"):
        Context.of(Document("cut \ud83d"))


def test_reading_from_files(
    tmp_path: Path, jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    instruction = tmp_path / "instruction.txt"
    instruction.write_text("do it\n")
    demos = jsonl("demos.jsonl", SHOTS)
    context = Context.read(Files(demos=demos, instruction=instruction, k=1))
    assert context == Context(instruction="do it", demonstrations=(Row("a", "b"),))
    with pytest.raises(ContextError, match="k = 1, but there are no demonstrations"):
        Context.read(Files(instruction=instruction, k=1))
    assert Context.read(Files()) == Context()  # it may come from the rows


def test_the_indentation_of_a_text_is_kept() -> None:
    code = "\n  \n    def f():\n        return 1\n\n"
    assert Context.of(Document(code)).document == "    def f():\n        return 1"
    assert Context.of(Instruction("\tDo it.\r\n")).instruction == "\tDo it."
