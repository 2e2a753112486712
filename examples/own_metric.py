"""Trains with a weighted sum of two losses, and scores the answers by a rule of your own.

python examples/own_metric.py
"""

import sys
from collections import defaultdict

import instil
from instil.losses import CrossEntropy, ReverseKL
from instil.models.tuning import LoRA

MODEL = sys.argv[1] if len(sys.argv) > 1 else "bundled:smollm2-135m-instruct"

shots = {"red car": "car, red", "old house": "house, old", "green tea": "tea, green"}
tests = {"cold water": "water, cold", "new shoe": "shoe, new"}
words = ["blue sky", "hot soup", "long road", "dark room", "sweet apple", "loud song", "tall tree"]

run = instil.distill(
    MODEL,
    context=[
        instil.Instruction("Write the noun first, then its adjective."),
        instil.FewShot([{"input": one, "output": other} for one, other in shots.items()]),
    ],
    inputs=words,
    eval=[{"input": one, "output": other} for one, other in tests.items()],
    prompt={"format": "plain"},
    objective=[ReverseKL(weight=0.8), CrossEntropy(weight=0.2)],
    tuning=LoRA(r=16, alpha=32),
    training={"max_steps": 10},
    output="runs/own_metric",
    overwrite=True,
    quiet=True,
)


def same_words(written: str, gold: str) -> bool:
    """The same words, in any order and case."""
    return sorted(written.casefold().split()) == sorted(gold.casefold().split())


# Each answer of each method is a row, so any rule can score it.
right = defaultdict(list)
for answer in run.predictions:
    assert answer.text is not None
    assert answer.expected is not None
    right[answer.method].append(same_words(answer.text, answer.expected))
for method, rows in right.items():
    print(f"{method:<14}{sum(rows)} of {len(rows)} have the same words")
