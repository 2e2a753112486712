"""What does it save to read a conversation once, and not once for each of its answers?

    python benchmarks/conversations.py [--conversations 16] [--turns 8] [--steps 3] [--output FILE]

Conversations of the benchmark `instil bench system-prompts` are given answers of the same length, and
are taught and trained on in two ways: as they are, and as a row for each answer that shares nothing
with the others. Both ways learn the logged answers (`--completions gold`) or the teacher's own. The
tokens of a conversation are those of its last prompt and answer, without the context.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from instil.bench.conversations import Product
from instil.models import forest, reader
from instil.pipeline.text import TextSteps
from instil.recipe.recipe import Recipe
from instil.system import environment
from instil.system.progress import Display
from instil.teacher.lessons import Grouped

MODEL = "bundled:smollm2-135m-instruct"
ANSWER = "Hi there! I have seen your message, and the team will look at it as soon as we can. Mia, Hollow Oak"


def conversations(count: int, turns: int) -> list[dict[str, Any]]:
    """Conversations of that number of turns, with the system prompt at their head."""
    product = Product.read("support")
    said = [text for user in product.users(4 * count * turns, "learn") for text in user]
    made = []
    for number in range(count):
        messages = [{"role": "system", "content": product.system}]
        for turn in range(turns):
            messages += [
                {"role": "user", "content": said[number * turns + turn]},
                {"role": "assistant", "content": f"{ANSWER} {number} {turn}"},
            ]
        made.append({"messages": messages})
    return made


@contextmanager
def a_row_for_each_answer() -> Iterator[None]:
    """Nothing but the context is shared."""
    usual = Grouped.of
    with (
        patch.object(forest, "LEAST_SHARED", 10**9),
        patch.object(reader, "LEAST_SHARED", 10**9),
        patch.object(Grouped, "of", lambda lessons, whole: usual(lessons, [None] * len(whole))),
    ):
        yield


def measure(file: Path, folder: Path, completions: str, steps: int, size: int) -> dict[str, Any]:
    """Teaches and trains; returns tokens and seconds of both."""
    recipe = Recipe.parse(
        {
            "model": MODEL,
            "task": {"name": "files", "inputs": str(file), "context_from_logs": True},
            "teacher": {"completions": completions, "max_new_tokens": 24},
            "training": {"max_steps": steps, "batch_size": size},
            "keep": {"source": "none"},
            "dtype": "float32",
        }
    )
    made = TextSteps.prepare(recipe, store=folder / "store", display=Display(quiet=True))
    start = time.perf_counter()
    taught = made.teach()
    assert taught is not None
    taught_at = time.perf_counter()
    made.train(taught, folder)
    costs = made.recorder.costs()
    pairs = taught.lessons.lessons.pairs
    whole: dict[int | None, int] = {}
    for pair in pairs:
        of = made.learnt.rows[pair.row].conversation
        length = len(pair.student_prompt) + len(pair.completion)
        whole[of] = max(whole.get(of, 0), length)
    return {
        "conversations": sum(whole.values()),
        "rows": sum(len(pair.student_prompt) + len(pair.completion) for pair in pairs),
        "new_answers": sum(len(pair.completion) for pair in pairs),
        "teach_tokens": costs["teach"].tokens,
        "train_tokens": costs["train"].tokens / steps,
        "teach_seconds": taught_at - start,
        "train_seconds": costs["train"].wall_seconds / steps,
    }


def main() -> None:
    """Measures both ways, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    print(
        "| learnt | way | teacher reads | student reads per step | of the conversations | seconds a step |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "logs.jsonl"
        # A fifth is held out, so that a batch is all that is learnt.
        rows = conversations(arguments.conversations * 5 // 4, arguments.turns)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for completions in ("gold", "teacher"):
            for way in ("merged", "a row for each answer"):
                folder = Path(name) / f"{completions} {way}"
                size = arguments.conversations * (1 if way == "merged" else arguments.turns)
                if way == "merged":
                    one = measure(file, folder, completions, arguments.steps, size)
                else:
                    with a_row_for_each_answer():
                        one = measure(file, folder, completions, arguments.steps, size)
                found[f"{completions}, {way}"] = one
                share = one["train_tokens"] / one["conversations"]
                print(
                    f"| {completions} | {way} | {one['teach_tokens']:,} | {one['train_tokens']:,.0f} | "
                    f"{share:.2f} | {one['train_seconds']:.1f} |",
                    flush=True,
                )
    if arguments.output:
        whole = {"environment": environment.describe(), "measured": found}
        arguments.output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
