"""Bakes a prompt of six demonstrations into an adapter, and asks the student.

python examples/own_prompt.py
"""

import sys

import instil

MODEL = sys.argv[1] if len(sys.argv) > 1 else "bundled:smollm2-135m-instruct"

shots = [("cat", "cats"), ("box", "boxes"), ("baby", "babies"), ("leaf", "leaves"), ("toy", "toys")]
tests = [("cup", "cups"), ("fox", "foxes"), ("lady", "ladies"), ("knife", "knives")]
words = "dog dish pony wolf glass key city tree wish story bird lunch day party loaf bus tax shelf"

run = instil.distill(
    MODEL,
    context=instil.FewShot([{"input": one, "output": many} for one, many in shots]),
    inputs=words.split(),
    eval=[{"input": one, "output": many} for one, many in tests],
    prompt={"format": "plain"},
    training={"max_steps": 20},
    output="runs/own_prompt",
    overwrite=True,
    quiet=True,
)

for result in run.results.methods:
    accuracy = result.scores[0].accuracy
    assert accuracy is not None  # all rows have outputs
    print(f"{result.method:<14}{accuracy.value:5.2f}{result.prompt_tokens_mean:6.0f} prompt tokens")
print("bottle ->", run.student.answer(["bottle"])[0])
print(run.report())
