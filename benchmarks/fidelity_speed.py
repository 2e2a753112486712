"""How long does a student's reading of held-out answers take, padded and packed?

    python benchmarks/fidelity_speed.py [--rows 48] [--output FILE]

Queries of the support desk of `instil bench system-prompts`, each with two answers: the teacher's
and the student's own. Both follow the same prompt. Padded: 12 rows in a pass, each with its whole
prompt. Packed: as an evaluation reads them, with what they share read once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import torch

from instil.bench.conversations import Product
from instil.models.load import load, quiet_libraries
from instil.models.reader import COMPLETIONS, Reader, read_rows
from instil.prompts.format import ChatPrompt
from instil.system import environment
from instil.tasks.conversation import Conversation, Message, Turn
from instil.tasks.rows import Row

MODEL, TOGETHER = "bundled:smollm2-135m-instruct", 12


def main() -> None:
    """Measures both and prints them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    quiet_libraries()
    model, product = load(MODEL), Product.read("support")
    form = ChatPrompt(model.tokenizer, template_kwargs={}, ends=model.end_ids)
    answers = itertools.cycle(one.content for one in product.examples if one.role == "assistant")
    rows = []
    for said in product.users(arguments.rows, "held_out"):
        turn = Turn(Conversation((Message("user", said[0]),)), 1)
        rows += [Row(said[0], next(answers), turn=turn) for _ in range(2)]
    prompts = [form.prompt_ids(row) for row in rows]
    completions = [form.completion_ids(row) for row in rows]

    def padded() -> list[torch.Tensor]:
        parts = [slice(at, at + TOGETHER) for at in range(0, len(rows), TOGETHER)]
        return [
            chunk
            for part in parts
            for chunk in read_rows(model, prompts[part], completions[part]).chunks()
        ]

    def packed() -> list[torch.Tensor]:
        each = [[completion] for completion in completions]
        reader = Reader(model, prompts, each, packing=COMPLETIONS, batch_size=128)
        passes = [*reader.read()]
        assert [row for one in passes for row in one.rows] == [*range(len(rows))]
        return [chunk for one in passes for chunk in one.logits.chunks()]

    found, likeliest = dict[str, float](), list[torch.Tensor]()
    with torch.inference_mode():
        for name, read in (("padded", padded), ("packed", packed)):
            read()  # finds out what the model can do
            start = time.perf_counter()
            likeliest.append(torch.cat([chunk.argmax(-1) for chunk in read()]))
            found[name] = time.perf_counter() - start
    same = float((likeliest[0] == likeliest[1]).float().mean())
    tokens = sum(map(len, completions))
    made = {"rows": len(rows), "tokens": tokens, "seconds": found, "same_likeliest_token": same}
    print(json.dumps(made))
    if arguments.output:
        whole = {**made, "environment": environment.describe()}
        arguments.output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
