"""Inputs that the teacher writes: more queries like those that it is given.

A prompt shows some of the given inputs, drawn anew for each prompt and in a new order, as a list
that is not finished. The teacher, which reads no context, writes one more item, sampled at
temperature 1 (as in self-instruct, Wang et al. 2023, arXiv:2212.10560). An item that is known
already, or much like an evaluation row, is left out.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instil.models.generate import Decoding, Ending, Generated
from instil.prompts.tokens import Tokens
from instil.results.training import MadeInputs
from instil.tasks.rows import Row, key

SHOTS = 8
"""Most given inputs in a prompt."""
MOST_TOKENS = 1024
"""Most tokens of the given inputs in a prompt. There is always one."""
ROUNDS = 8
"""How often more are written to replace those that are left out."""
NEAR = 0.9
"""Similarity (`difflib`) from which two inputs are near-copies."""


@dataclass(frozen=True)
class Made:
    """Inputs that were written.

    Attributes:
        rows: The inputs, all different.
        facts: How many they are, and how many were left out.
    """

    rows: list[Row]
    facts: MadeInputs


def make_inputs(
    given: Sequence[Row],
    count: int,
    *,
    others: Sequence[Row],
    judged: Sequence[Row],
    seed: int,
    tokens: Tokens,
    write: Callable[[Sequence[list[int]], Ending, Decoding], list[Generated]],
    fits: Callable[[str], bool],
) -> Made:
    """Lets the teacher write inputs. The same arguments give the same inputs.

    Args:
        given: The inputs to learn from.
        count: How many to add. Fewer are made if the teacher repeats itself too often.
        others: Further rows whose inputs are not made again.
        judged: Evaluation rows. No near-copy of them is made.
        seed: Seed of the prompts and of the sampling.
        tokens: Tokenises the prompts.
        write: Lets the teacher complete prompts.
        fits: Whether the models can read a query.
    """
    prompts = _Prompts(given, tokens)
    known = {key(row) for row in [*given, *others]}
    held_out = sorted({key(row) for row in judged})
    made: list[Row] = []
    repeated = near = unfit = 0
    for turn in range(ROUNDS):
        missing = count - len(made)
        if not missing:
            break
        asked = [prompts.one(f"{seed} {turn} {number}") for number in range(missing)]
        decoding = Decoding(prompts.longest, temperature=1.0, seed=seed * ROUNDS + turn)
        for completion in write(asked, prompts.ending, decoding):
            text = prompts.item(completion)
            row = Row(text)
            if not text or not fits(text):
                unfit += 1
            elif key(row) in known:
                repeated += 1
            elif difflib.get_close_matches(key(row), held_out, n=1, cutoff=NEAR):
                near += 1
            else:
                known.add(key(row))
                made.append(row)
    facts = MadeInputs(rows=len(made), asked=count, repeated=repeated, near=near, unfit=unfit)
    return Made(made, facts)


class _Prompts:
    """Lists of given inputs that lack their last item."""

    def __init__(self, given: Sequence[Row], tokens: Tokens) -> None:
        self.given, self.tokens = given, tokens
        lines = any("\n" in row.input for row in given)
        self.end = "\n\n---\n\n" if lines else "\n"
        self.lengths = [len(tokens.ids(tokens.marked(row.input), special=False)) for row in given]
        self.longest = 2 * max(self.lengths) + 8
        self.ending = Ending((self.end,), (), tokens.text)

    def one(self, seed: str) -> list[int]:
        """The token ids of a prompt."""
        order = random.Random(seed).sample(range(len(self.given)), len(self.given))
        shown: list[int] = []
        for number in order[:SHOTS]:
            if shown and sum(self.lengths[n] for n in [*shown, number]) > MOST_TOKENS:
                break
            shown.append(number)
        items = (f"Input: {self.tokens.marked(self.given[n].input)}{self.end}" for n in shown)
        return self.tokens.ids("".join(items) + "Input:", special=True)

    def item(self, completion: Generated) -> str:
        """The item that was written; empty if it was cut."""
        text, end, _ = self.tokens.text(completion.ids).partition(self.end)
        return text.strip() if end else ""
